# The router as a container: `docker build -t smg .`, then flags are arguments: `docker run smg --worker-urls http://…`.
# smg is process 1: it handles SIGTERM itself and starts no children, so no init is needed.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# What smg_build_info says: --build-arg REVISION="$(git rev-parse HEAD)"
ARG REVISION=
# The caches are not part of the image, so the binary is moved out of them; without line tables it is a quarter as large.
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
# For workers behind https://.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/smg /usr/local/bin/smg
USER 65532:65532
# Clients, metrics, mesh.
EXPOSE 8000 29000 39527
ENTRYPOINT ["smg"]
