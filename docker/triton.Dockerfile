# The Triton of docker/versions.env with what the entries <model>_jpeg need: OpenCV, of the very version that the jobs have.
# Without it Triton serves the models all the same, by prepared tensors alone.
#   docker build --file docker/triton.Dockerfile --build-arg TRITON_IMAGE=<that of docker/versions.env> --tag nightshift/triton:dev .
#   TRITON_IMAGE=nightshift/triton:dev docker compose --profile serving up --detach
ARG TRITON_IMAGE

FROM ${TRITON_IMAGE}
LABEL org.opencontainers.image.title="nightshift-triton" \
      org.opencontainers.image.description="Triton with OpenCV for entries that take encoded pictures" \
      org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-NVIDIA-Deep-Learning-Container"
WORKDIR /opt/nightshift
COPY LICENSE NOTICE ./
COPY requirements/triton-without-dependencies.txt /tmp/
RUN sed -n '/^opencv-python-headless==/,/# via/p' /tmp/triton-without-dependencies.txt > /tmp/opencv.txt \
 && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --no-deps --require-hashes --requirement /tmp/opencv.txt \
 && python3 -c "import cv2, numpy" \
 && rm /tmp/opencv.txt /tmp/triton-without-dependencies.txt
WORKDIR /opt/tritonserver
