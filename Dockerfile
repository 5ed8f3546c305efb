# syntax=docker/dockerfile:1
#
#   docker build -t psy-agents .                                        # CPU
#   docker build -t psy-agents:cuda --build-arg VARIANT=cuda .          # NVIDIA GPUs
#   docker run --rm -v "$PWD:/work" psy-agents train output_dir=outputs
#   docker run --rm --gpus all --shm-size 1g -v "$PWD:/work" psy-agents:cuda info
#
# Neither variant has been built: where this file was written there was no container engine.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:${PYTHON}-slim
# cpu or cuda. On Linux the package index has torch with CUDA, and brings the CUDA libraries along.
ARG VARIANT=cpu
COPY constraints.txt /tmp/
COPY --from=wheel /dist/ /tmp/dist/
RUN set -eu; \
    case "$VARIANT" in \
        cpu) torch="--extra-index-url https://download.pytorch.org/whl/cpu" ;; \
        cuda) torch="" ;; \
        *) echo "VARIANT must be cpu or cuda, but is $VARIANT" >&2; exit 1 ;; \
    esac; \
    wheel=$(ls /tmp/dist/*.whl); \
    pip install --no-cache-dir $torch -c /tmp/constraints.txt "$wheel[all]"; \
    rm -r /tmp/dist /tmp/constraints.txt

# Outputs belong to this user, or with `--user "$(id -u):$(id -g)"` to the one who starts the container;
# caches go to a home that either may write.
RUN useradd --create-home --uid 1000 psy && chmod 1777 /home/psy
USER psy
ENV HOME=/home/psy LOGNAME=psy
WORKDIR /runs
ENTRYPOINT ["psy-agents"]
CMD ["--help"]
