# A small image of dewar, built from source: `docker build .`, `podman build --format docker .`. What a container of it needs to
# hold limits: docs/docker.md.

# Any image with Rust 1.89 or newer and a C compiler.
ARG BUILD_BASE=docker.io/library/rust:1-slim-bookworm
# Any image with bash, which runs the tasks, and the C library of the first or a newer one.
ARG RUN_BASE=docker.io/library/debian:bookworm-slim

FROM ${BUILD_BASE} AS build
# What cargo is told beyond `--release --locked`.
ARG CARGO_FLAGS=""
# Nothing that a dependency does while it is built is done as root.
RUN useradd --create-home builder && install -d -o builder -g builder /src
USER builder
WORKDIR /src
COPY --chown=builder:builder . .
RUN cargo build --release --locked ${CARGO_FLAGS} && mkdir bin && cp target/release/dewar target/release/dewar-full target/release/dewar-runner bin

FROM ${RUN_BASE}
COPY --from=build /src/bin/* /usr/bin/
# Checkpoints and sandboxes: what a task has done is known only as long as these are.
VOLUME /var/lib/dewar
# By grpc.health.v1, on the socket.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s CMD ["/usr/bin/dewar", "health"]
# It lets calls end for five seconds; SIGTERM to it ends no task, the end of its container does.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/dewar", "serve"]
