# Two images of one job: `gpu`, the last and so the default, and `cpu`. Build them with `make image-gpu` and `make image`.
#
# Nothing in them is written at run time: the root file system may be read-only, the user any, the network absent. All
# that a run writes goes to one volume, mounted at /work.

# Python 3.11.16 on Debian 12. A change of the digest changes nothing else.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84

# Weights of a backbone, for clusters that reach neither the network nor a bucket. There are none by default;
# `--build-context weights=FOLDER` puts a folder in their place, and `--build-arg WEIGHTS=/weights/FILE` says which to use.
FROM scratch AS weights

FROM ${PYTHON_IMAGE} AS builder
# Packages go into an environment of their own, which moves to the image without pip and what pip needs.
RUN python -m venv --without-pip /opt/venv
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# The packages come before the source, and are a layer of their own: a change of the source downloads and pushes none of them.
COPY requirements/install /build/

FROM builder AS cpu-packages
COPY requirements/cpu.txt /build/
RUN /build/install /build/cpu.txt

FROM builder AS gpu-packages
COPY requirements/gpu.txt /build/
RUN /build/install /build/gpu.txt

FROM builder AS source
COPY LICENSE /app/
COPY job /app/job
COPY demo /app/demo
# Readable for any user, whatever the umask of the checkout; compiled, because a read-only root cannot be changed later.
RUN chmod -R go=rX /app && python -m compileall -q --invalidation-mode unchecked-hash /app

FROM ${PYTHON_IMAGE} AS runtime
# A signal to process 1 is lost while that has no handler, and Python needs a moment before it has one: tini is process 1, and
# passes on signals and exit codes.
RUN apt-get update && apt-get install --yes --no-install-recommends 'tini=0.19.0-1*' \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
# A running job installs nothing.
RUN python -m pip uninstall --yes --quiet pip setuptools wheel && mkdir /work && chown 65532:65532 /work
# For people: `kubectl exec POD -- thaw status`.
RUN printf '#!/bin/sh\nexec python -m job "$@"\n' > /usr/local/bin/thaw && chmod 755 /usr/local/bin/thaw
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    # Files in /work must not be imported as modules.
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    # TFDS, Keras, matplotlib and CUDA keep their files under HOME.
    HOME=/work \
    TMPDIR=/work \
    THAW_CACHE_DIR=/work/cache
WORKDIR /work
# By number, so that Kubernetes can tell that it is not root. Any other user works too, if it may write to /work.
USER 65532:65532
EXPOSE 9090
ENTRYPOINT ["tini", "--", "python", "-m", "job"]
LABEL org.opencontainers.image.title="Thaw" \
      org.opencontainers.image.description="One idempotent Kubernetes Job that fine-tunes a pre-trained image classifier" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM runtime AS cpu
COPY --from=cpu-packages /opt/venv /opt/venv
COPY --from=weights / /weights/
COPY --from=source /app /app
# Last, because they differ from build to build.
ARG WEIGHTS=imagenet VERSION=unknown REVISION=unknown
ENV THAW_WEIGHTS=$WEIGHTS
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION

FROM runtime AS gpu
# Where GKE mounts the driver. Elsewhere the container runtime puts it where it is found anyway.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    # Bytes. For an H100 or a newer GPU the driver compiles most kernels, and its own limit may be too small to keep them all.
    CUDA_CACHE_MAXSIZE=2147483648
COPY --from=gpu-packages /opt/venv /opt/venv
COPY --from=weights / /weights/
COPY --from=source /app /app
ARG WEIGHTS=imagenet VERSION=unknown REVISION=unknown
ENV THAW_WEIGHTS=$WEIGHTS
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION
