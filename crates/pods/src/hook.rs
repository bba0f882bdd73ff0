//! What a container's manifest wants done after its start and before its end.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::probe::http_get;
use crate::sandbox::Control;

/// Does it. The limit is how long a program or a sleep may take.
pub(crate) async fn run(
    hook: &LifecycleHandler,
    container: &Container,
    address: Option<IpAddr>,
    control: &Control,
    limit: Duration,
) -> Result<(), String> {
    let work = async {
        if let Some(sleep) = &hook.sleep {
            let wanted = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
            tokio::time::sleep(wanted).await;
            return Ok(());
        }
        if let Some(exec) = &hook.exec {
            let command = exec.command.clone().unwrap_or_default();
            return match control.exec(&container.name, command, limit).await? {
                (Some(0), _) => Ok(()),
                (Some(code), said) => Err(format!("the command ended with status {code}: {}", said.trim())),
                (None, said) => Err(format!("the command could not be run: {}", said.trim())),
            };
        }
        if let Some(get) = &hook.http_get {
            let address = address.ok_or("the pod has no address")?;
            return http_get(get, container, address).await;
        }
        Ok(())
    };
    let timed = tokio::time::timeout(limit, work).await;
    timed.unwrap_or_else(|_| Err(format!("not done within {} s", limit.as_secs())))
}
