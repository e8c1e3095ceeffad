# The gateway as a container image. Not for hosts: a container takes its VMs with it when it ends.
#
#   docker build -t flyci .
#   docker run -p 8443:8443 -v flyci:/var/lib/flyci -v /etc/flyci:/etc/flyci:ro flyci
#
# No shell, no package manager, no private Postgres inside: `database.url` is needed. Runs as user 65532; keys and
# secrets must be readable by that user alone.
#
# There is no HEALTHCHECK, which would need a program inside to ask with: let the platform ask
# `GET /healthz` (alive) and `GET /readyz` (can serve) on the public listener.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ENV SQLX_OFFLINE=true
# The caches are not part of any layer, so the binary is copied out of them in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package flyci --bin flyci \
    && install -D target/release/flyci /out/usr/local/bin/flyci \
    && install -d -m 0700 /out/var/lib/flyci

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="flyci" \
      org.opencontainers.image.description="The flyci gateway: webhooks in, one-job runners out" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.source="https://github.com/flyci/flyci"
COPY --from=build --chown=65532:65532 /out/ /
ENV FLYCI_CONFIG=/etc/flyci/flyci.toml \
    FLYCI_DATA_DIR=/var/lib/flyci \
    FLYCI_ROLES=gateway
USER 65532:65532
VOLUME /var/lib/flyci
EXPOSE 8443 9464
# SIGTERM: takes no new work, finishes what it writes.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/flyci"]
CMD ["serve"]
