# MLflow's server with login, PostgreSQL, S3 and metrics. It also sets up a team's server and backs up its buckets.
# In production, name BASE by digest.
ARG BASE=python:3.11-slim

FROM ${BASE} AS dependencies
COPY infra/images/wheels /wheels
COPY infra/images/install.sh infra/images/tracker.lock /build/
RUN KEEP='*/mlflow/server/js' sh /build/install.sh dependencies /build/tracker.lock

FROM ${BASE}
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /tmp
# The root filesystem may be read-only: only /tmp is written.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    USER=mlflow \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    AWS_REQUEST_CHECKSUM_CALCULATION=when_required \
    AWS_RESPONSE_CHECKSUM_VALIDATION=when_required \
    DO_NOT_TRACK=true
ARG GIT_SHA=unknown
LABEL org.opencontainers.image.title="bebygan-tracker" \
      org.opencontainers.image.description="MLflow's tracking server and model registry" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="$GIT_SHA"
USER 1000:1000
CMD ["mlflow", "server"]
