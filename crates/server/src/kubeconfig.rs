//! The file that lets kubectl in: one cluster, one user.

use std::path::Path;

use base64::Engine as _;

/// What a kubeconfig says.
#[derive(Clone, Debug)]
pub struct Kubeconfig<'a> {
    /// Name of the cluster, the context and the user.
    pub name: &'a str,
    /// The server's URL, as in `https://127.0.0.1:6443`.
    pub server: &'a str,
    /// The authority's certificate as PEM; it is embedded.
    pub authority_pem: &'a str,
    /// The user's bearer token.
    pub token: &'a str,
}

impl Kubeconfig<'_> {
    /// The file's text. It is JSON, which is YAML: no quoting can go wrong.
    pub fn render(&self) -> String {
        let authority = base64::engine::general_purpose::STANDARD.encode(self.authority_pem);
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": self.name, "cluster": {
                "server": self.server, "certificate-authority-data": authority,
            }}],
            "users": [{"name": self.name, "user": {"token": self.token}}],
            "contexts": [{"name": self.name, "context": {"cluster": self.name, "user": self.name}}],
            "current-context": self.name,
        });
        let mut text = serde_json::to_string_pretty(&config).expect("a JSON value of strings serializes");
        text.push('\n');
        text
    }

    /// Writes the file at once, readable by its owner only.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        crate::pki::write_atomically(path, self.render().as_bytes(), 0o600)
    }
}
