# A Triton with its models in it: a repository of models, looked over and copied into the serving image. Nothing has to be mounted,
# and nothing can be loaded later: the models are those of the image.
#   --target gpu  on the official image of docker/versions.env
#   --target cpu  on our Triton for machines without a GPU: ONNX models and Python backends
# The repository is the build context: docker/build models, docker/build models-cpu.
ARG CONVERSION_IMAGE
ARG TRITON_CPU_IMAGE
ARG TRITON_IMAGE

FROM ${CONVERSION_IMAGE} AS checked
COPY . /tmp/models
RUN python -m conversion_jobs.assemble_repository --repository /tmp/models

FROM ${TRITON_CPU_IMAGE} AS cpu
LABEL org.opencontainers.image.title="nightshift-models-cpu" \
      org.opencontainers.image.description="Triton on the CPU with its models in the image" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /opt/nightshift
COPY --from=checked /opt/nightshift/LICENSE /opt/nightshift/NOTICE ./
COPY --from=checked --chown=root:root --chmod=a+rX /tmp/models /models
CMD ["python3", "-m", "docker.triton_cpu", "--load-model=*", "--strict-readiness=true"]

FROM ${TRITON_IMAGE} AS gpu
LABEL org.opencontainers.image.title="nightshift-models" \
      org.opencontainers.image.description="Triton with its models in the image" \
      org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-NVIDIA-Deep-Learning-Container"
WORKDIR /opt/nightshift
COPY --from=checked /opt/nightshift/LICENSE /opt/nightshift/NOTICE ./
COPY --from=checked --chown=root:root --chmod=a+rX /tmp/models /models
WORKDIR /opt/tritonserver
EXPOSE 8000 8001 8002
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=none", "--disable-auto-complete-config"]
