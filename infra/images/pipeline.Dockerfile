# All steps in one image, for a machine that runs the whole pipeline with `bebygan run`.
# Both images of the steps are installed from compatible lock files, so copying one over the other causes no conflict.
ARG DATA=bebygan-data-python:latest
ARG TORCH=bebygan-torch-python:latest

FROM ${DATA} AS data

FROM ${TORCH}
COPY --from=data /opt/venv /opt/venv
LABEL org.opencontainers.image.title="bebygan-pipeline" \
      org.opencontainers.image.description="Runs the whole retraining pipeline on one machine"
USER 1000:1000
CMD ["bebygan", "--help"]
