# prunebench for the CPU and for NVIDIA GPUs (the host needs the NVIDIA container toolkit).
#   docker build -t prunebench .
#   docker run --rm -v "$PWD/runs:/work/runs" prunebench run digits-linf --jobs 2
FROM python:3.12-slim-bookworm

# The compiler builds the sparse kernels on first use.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY requirements/dev.txt requirements/dev.txt
RUN pip install --no-cache-dir --require-hashes --requirement requirements/dev.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

RUN useradd --create-home bench && mkdir /work && chown bench /work
USER bench
WORKDIR /work
ENTRYPOINT ["prunebench"]
CMD ["--help"]
