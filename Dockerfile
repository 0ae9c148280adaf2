# The image of the router: `docker build -t smg .`. Arguments are flags: `docker run smg --worker-urls http://…`.
# smg is process 1. It handles SIGTERM itself and starts no child processes, so it needs no init.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# The revision in smg_build_info: --build-arg REVISION="$(git rev-parse HEAD)"
ARG REVISION=
# The cache mounts are not part of the image, so the binary is copied out of them. Stripping the line tables makes it a quarter
# as large.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    SMG_REVISION="$REVISION" cargo build --release --locked --bin smg \
    && mkdir /out && strip --strip-debug -o /out/smg target/release/smg

FROM debian:bookworm-slim
ARG REVISION=
LABEL org.opencontainers.image.title="smg" \
      org.opencontainers.image.description="An LLM inference router that stays up: one binary, a gossip mesh, no Redis" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION"
# Certificate authorities, for workers with https:// URLs.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/smg /usr/local/bin/smg
USER 65532:65532
# Ports for clients, metrics and the mesh.
EXPOSE 8000 29000 39527
ENTRYPOINT ["smg"]
