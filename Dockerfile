# The program with its kernels in a small image; not tested in CI.
#     docker build -t taskloom .
#     docker run --rm --gpus all -v "$PWD:/work" taskloom train configs/quickstart.toml
# The driver comes from the host (NVIDIA Container Toolkit); without a card it trains on the CPU.
FROM rust:1-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# pip refuses to write beside Debian's packages unless told; the compiler goes into target/ alone.
RUN PIP_BREAK_SYSTEM_PACKAGES=1 scripts/cuda-toolkit.sh && cargo build --release --locked && strip target/release/taskloom

FROM debian:bookworm-slim
COPY --from=build /src/target/release/taskloom /usr/local/bin/taskloom
WORKDIR /work
ENTRYPOINT ["taskloom"]
