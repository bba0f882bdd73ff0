//! A server by hand: `cargo run -p portolan-server --example serve -- DIR [ADDRESS:PORT]`, then use `DIR/kubeconfig`.

use std::path::PathBuf;

use anyhow::Context as _;
use portolan_server::kubeconfig::Kubeconfig;
use portolan_server::{Config, Identity, Server, pki, serve};
use portolan_store::embedded::{Embedded, Options};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().context("usage: serve DIR [ADDRESS:PORT]")?);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:6443".to_owned());

    let authority = pki::Authority::open(&dir)?;
    let listener =
        tokio::net::TcpListener::bind(&address).await.with_context(|| format!("listening on {address}"))?;
    let local = listener.local_addr()?;
    let tls = authority.serving(&pki::usual_names(&[local.ip()]))?;

    let mut config = Config::new(vec!["10.96.0.0/16".parse()?, "fd00:96::/112".parse()?]);
    config.advertise_addresses = vec![local.ip()];
    config.advertise_port = local.port();
    config.tokens = vec![(authority.admin_token()?, Identity::admin())];
    let store = Embedded::open(&dir.join("store.redb"), Options::default())?;
    let server = Server::open(config, store.clone()).await?;

    let kubeconfig = dir.join("kubeconfig");
    let token = authority.admin_token()?;
    let file = Kubeconfig {
        name: "portolan",
        server: &format!("https://{local}"),
        authority_pem: authority.certificate_pem(),
        token: &token,
    };
    file.write(&kubeconfig)?;
    println!("export KUBECONFIG={}", kubeconfig.display());
    let interrupted = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    serve(server.clone(), listener, tls, interrupted).await?;
    server.close();
    store.close().await;
    Ok(())
}
