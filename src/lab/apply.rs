//! Manifests: read before anything is made, then created or changed through the API, with kubectl's words for errors.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersionKind, Status};
use kube::discovery::{ApiCapabilities, ApiResource, Scope};
use kube::{Api, Client, Resource};
use serde_json::Value;

use super::cluster;

/// Who applies.
const MANAGER: &str = "portolan-lab";

/// One object of a manifest.
#[derive(Clone, Debug)]
pub struct Document {
    /// The file.
    pub source: String,
    /// Its `apiVersion` and `kind`.
    pub kind: GroupVersionKind,
    /// Its name.
    pub name: String,
    /// Its namespace, if it names one.
    pub namespace: Option<String>,
    /// The whole object.
    pub value: Value,
}

/// Reads files, directories (their `*.yaml`, `*.yml`, `*.json` by name) and `-`, standard input.
pub fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
            documents.extend(parse("STDIN", &text)?);
            continue;
        }
        let mut files = vec![path.clone()];
        if fs::metadata(path).with_context(|| format!("-f {}", path.display()))?.is_dir() {
            files = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
            files.retain(|f| {
                f.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known))
            });
            files.sort();
            if files.is_empty() {
                bail!("-f {}: the directory has no *.yaml, *.yml or *.json", path.display());
            }
        }
        for file in files {
            let text = fs::read_to_string(&file).with_context(|| format!("-f {}", file.display()))?;
            documents.extend(parse(&file.display().to_string(), &text)?);
        }
    }
    Ok(documents)
}

fn parse(source: &str, text: &str) -> anyhow::Result<Vec<Document>> {
    // Kubernetes reads YAML 1.1: `defaultMode: 0644` is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let values: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|e| anyhow!("{source}: {e}"))?;
    let mut documents = Vec::new();
    for value in values {
        match value {
            Value::Null => {}
            Value::Object(ref list) if list.get("kind").is_some_and(|k| k == "List") => {
                for item in list.get("items").and_then(Value::as_array).into_iter().flatten() {
                    documents.push(document(source, item.clone())?);
                }
            }
            value => documents.push(document(source, value)?),
        }
    }
    Ok(documents)
}

/// An object as one of a manifest.
pub fn document(source: &str, value: Value) -> anyhow::Result<Document> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let missing = |field: &str| anyhow!("{source}: {field}: required: every object of a manifest has one");
    let version = text("/apiVersion").ok_or_else(|| missing("apiVersion"))?;
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let kind = text("/kind").ok_or_else(|| missing("kind"))?;
    Ok(Document {
        source: source.to_owned(),
        kind: GroupVersionKind::gvk(group, version, &kind),
        name: text("/metadata/name").ok_or_else(|| missing("metadata.name"))?,
        namespace: text("/metadata/namespace"),
        value,
    })
}

/// Creates or changes each object in turn; stops at the first that the server refuses. Tells what came of each.
pub async fn apply(
    client: &Client,
    documents: &[Document],
    mut tell: impl FnMut(String),
) -> anyhow::Result<()> {
    let mut known: HashMap<GroupVersionKind, (ApiResource, ApiCapabilities)> = HashMap::new();
    for document in documents {
        if !known.contains_key(&document.kind) {
            let found = kube::discovery::pinned_kind(client, &document.kind).await;
            known.insert(document.kind.clone(), found.map_err(|error| unknown_kind(document, error))?);
        }
        let (resource, capabilities) = &known[&document.kind];
        let namespace = match capabilities.scope {
            Scope::Namespaced => Some(document.namespace.as_deref().unwrap_or("default")),
            Scope::Cluster => None,
        };
        let done =
            apply_one(client, document, resource, namespace).await.map_err(|e| refused(document, e))?;
        let group = if resource.group.is_empty() { String::new() } else { format!(".{}", resource.group) };
        tell(format!("{}{group}/{} {done}", resource.kind.to_lowercase(), document.name));
    }
    Ok(())
}

async fn apply_one(
    client: &Client,
    document: &Document,
    resource: &ApiResource,
    namespace: Option<&str>,
) -> kube::Result<&'static str> {
    let path = DynamicObject::url_path(resource, namespace);
    // Strict, as kubectl asks for: a misspelt field is an error and not ignored.
    let request = http::Request::post(format!("{path}?fieldManager={MANAGER}&fieldValidation=Strict"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(&document.value).map_err(kube::Error::SerdeError)?)
        .map_err(|e| kube::Error::Service(Box::new(e)))?;
    match client.request::<DynamicObject>(request).await {
        Ok(_) => Ok("created"),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let api: Api<DynamicObject> = match namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
                None => Api::all_with(client.clone(), resource),
            };
            let parameters = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
            api.patch(&document.name, &parameters, &Patch::Merge(&document.value)).await?;
            Ok("configured")
        }
        Err(error) => Err(error),
    }
}

fn unknown_kind(document: &Document, error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Discovery(_) => {}
        kube::Error::Api(ref status) if status.is_not_found() => {}
        other => return other.into(),
    }
    anyhow!(
        "resource mapping not found for name: \"{}\" namespace: \"{}\" from \"{}\": no matches for kind \"{}\" in version \"{}\"",
        document.name,
        document.namespace.as_deref().unwrap_or_default(),
        document.source,
        document.kind.kind,
        document.kind.api_version()
    )
}

/// A refusal in kubectl's words: the object, the field, what is wrong with it.
fn refused(document: &Document, error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow!("{}", worded(document, &status)),
        other => anyhow::Error::new(other).context(format!("creating {}", document.source)),
    }
}

fn worded(document: &Document, status: &Status) -> String {
    let causes = status.details.as_ref().map(|d| d.causes.as_slice()).unwrap_or_default();
    if status.reason == "Invalid" && !causes.is_empty() {
        let lines: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let what = format!("The {} \"{}\" is invalid:", document.kind.kind, document.name);
        return match lines.as_slice() {
            [one] => format!("{what} {one}"),
            all => format!("{what}\n* {}", all.join("\n* ")),
        };
    }
    let reason = if status.reason.is_empty() { status.code.to_string() } else { status.reason.clone() };
    format!("Error from server ({reason}): error when creating \"{}\": {}", document.source, status.message)
}

/// Waits until every Deployment has the replicas it asks for, and tells when.
pub async fn deployments_available(client: &Client, mut tell: impl FnMut(String)) {
    cluster::until(Api::<Deployment>::all(client.clone()), |deployments| {
        if deployments.is_empty() {
            return Some(());
        }
        let done = deployments.values().filter(|d| is_available(d)).count();
        if done == deployments.len() {
            tell(format!("{done} of {done} Deployments available"));
        }
        (done == deployments.len()).then_some(())
    })
    .await
}

fn is_available(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    deployment.status.as_ref().is_some_and(|status| {
        status.observed_generation >= deployment.metadata.generation
            && status.updated_replicas.unwrap_or(0) >= wanted
            && status.available_replicas.unwrap_or(0) >= wanted
    })
}

/// What is not there yet, for whoever waits in vain.
pub async fn missing(client: &Client) -> Vec<String> {
    let mut all = Vec::new();
    let parameters = kube::api::ListParams::default();
    if let Ok(deployments) = Api::<Deployment>::all(client.clone()).list(&parameters).await {
        for deployment in deployments.iter().filter(|d| !is_available(d)) {
            let available = deployment.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
            let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
            all.push(format!(
                "Deployment {}: {available} of {wanted} replicas available",
                cluster::key(deployment)
            ));
        }
    }
    if let Ok(services) = Api::<Service>::all(client.clone()).list(&parameters).await {
        for service in services.iter().filter(|s| lacks_address(s)) {
            all.push(format!("Service {}: no load-balancer address", cluster::key(service)));
        }
    }
    all
}

/// Waits until every Service of type LoadBalancer has an address of each of its families; returns all Services.
pub async fn services_addressed(client: &Client) -> Vec<Service> {
    cluster::until(Api::<Service>::all(client.clone()), |services| {
        services.values().all(|s| !lacks_address(s)).then(|| services.values().cloned().collect())
    })
    .await
}

/// Whether a load balancer's address is still to come. One with a class of its own is for somebody else.
fn lacks_address(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    if spec.type_.as_deref() != Some("LoadBalancer") || spec.load_balancer_class.is_some() {
        return false;
    }
    let families = spec.ip_families.as_ref().map_or(1, Vec::len);
    let given = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref())
        .and_then(|l| l.ingress.as_ref())
        .map_or(0, Vec::len);
    given < families
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_and_every_item_of_a_list_is_an_object() {
        let text = "# first\nkind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\ndata: {mode: \"1\"}\n---\n---\n\
                    apiVersion: v1\nkind: List\nitems:\n- {kind: Pod, apiVersion: v1, metadata: {name: b, namespace: other}}\n";
        let documents = parse("x.yaml", text).expect("documents");
        let names: Vec<_> = documents.iter().map(|d| (d.kind.kind.as_str(), d.name.as_str())).collect();
        assert_eq!(names, [("ConfigMap", "a"), ("Pod", "b")]);
        assert_eq!(documents[1].namespace.as_deref(), Some("other"));
    }

    #[test]
    fn numbers_are_read_as_kubernetes_reads_them() {
        let text = "{kind: X, apiVersion: a/v1, metadata: {name: a}, mode: 0644, on: yes}";
        let value = &parse("x", text).expect("a document")[0].value;
        assert_eq!(value["mode"], 0o644);
    }

    #[test]
    fn an_object_without_a_kind_is_refused_with_its_file_and_field() {
        for (text, field) in [
            ("apiVersion: v1", "kind"),
            ("kind: X", "apiVersion"),
            ("{kind: X, apiVersion: v1}", "metadata.name"),
        ] {
            let error = parse("dir/x.yaml", text).expect_err("refused").to_string();
            assert!(error.starts_with(&format!("dir/x.yaml: {field}: ")), "{error}");
        }
    }

    #[test]
    fn a_refusal_names_the_object_and_the_field() {
        let document =
            &parse("x.yaml", "{kind: Service, apiVersion: v1, metadata: {name: web}}").expect("one")[0];
        let status: Status = serde_json::from_value(serde_json::json!({
            "code": 422, "reason": "Invalid", "message": "long",
            "details": {"causes": [{"field": "spec.ports[0].nodePort", "message": "Invalid value: 1: out of range", "reason": "x"}]},
        }))
        .expect("a status");
        assert_eq!(
            worded(document, &status),
            "The Service \"web\" is invalid: spec.ports[0].nodePort: Invalid value: 1: out of range"
        );
    }
}
