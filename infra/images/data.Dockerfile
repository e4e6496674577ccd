# Image of the steps that process photographs: DVC, Great Expectations, boto3, Kubeflow's client; no torch.
# In production, name BASE by digest.
ARG BASE=python:3.11-slim

FROM ${BASE} AS dependencies
COPY infra/images/wheels /wheels
COPY infra/images/install.sh infra/images/data.lock /build/
RUN sh /build/install.sh dependencies /build/data.lock

FROM dependencies AS project
COPY LICENSE README.md pyproject.toml /build/project/
COPY bebygan /build/project/bebygan
COPY components /build/project/components
COPY pipelines /build/project/pipelines
ARG GIT_SHA=unknown GIT_DIRTY=unknown
RUN sh /build/install.sh project /build/project /build/data.lock "$GIT_SHA" "$GIT_DIRTY"

FROM ${BASE}
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=project /opt/bebygan /opt/bebygan
COPY --from=project /etc/bebygan.json /etc/
WORKDIR /app
COPY params.yaml ./
COPY params ./params
COPY data/pretrained ./data/pretrained
# The root filesystem may be read-only: only /tmp is written.
ENV PATH=/opt/venv/bin:/opt/bebygan/bin:$PATH \
    HOME=/tmp \
    USER=bebygan \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DVC_NO_ANALYTICS=1 \
    AWS_REQUEST_CHECKSUM_CALCULATION=when_required \
    AWS_RESPONSE_CHECKSUM_VALIDATION=when_required \
    MLFLOW_DISABLE_TELEMETRY=true
ARG GIT_SHA=unknown
LABEL org.opencontainers.image.title="bebygan-data" \
      org.opencontainers.image.description="Takes in photographs and cuts patches" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="$GIT_SHA"
USER 1000:1000
CMD ["python3"]
