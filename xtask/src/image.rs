//! An OCI image of one program, as an archive: a function of its arguments, byte for byte.
//!
//! The formats are those of the OCI image specification 1.1 (image-layout, manifest, config, layer).

use std::io::Write as _;

use flate2::{Compression, GzBuilder};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// Where the program is in the image.
const PROGRAM: &str = "portolan";

/// An image's archive, and the digest of its manifest, by which it is known.
pub struct Image {
    pub archive: Vec<u8>,
    pub digest: String,
}

/// A file of the layout's content-addressed store.
struct Blob {
    hash: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Blob {
        Blob { hash: hash(&bytes), bytes }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", self.hash), "size": self.bytes.len()})
    }
}

/// The image `name` of `program` for an architecture of OCI's names. Nothing of the time or the machine goes into it.
pub fn archive(name: &str, version: &str, architecture: &str, program: &[u8]) -> anyhow::Result<Image> {
    let files = tar([(PROGRAM, 0o755, program)])?;
    let diff_id = format!("sha256:{}", hash(&files));
    // No file name, and no time, which would differ.
    let mut zipped = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    zipped.write_all(&files)?;
    let layer = Blob::new(zipped.finish()?);
    let config = Blob::new(serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": [format!("/{PROGRAM}")], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }))?);
    let manifest = Blob::new(serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
        "annotations": {
            "org.opencontainers.image.title": "portolan",
            "org.opencontainers.image.version": version,
            "org.opencontainers.image.licenses": "Apache-2.0",
        },
    }))?);
    let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    entry["platform"] = json!({"architecture": architecture, "os": "linux"});
    // `ctr images import` takes the name whole from the second of these; others put theirs before the first.
    entry["annotations"] = json!({
        "org.opencontainers.image.ref.name": name.rsplit_once(':').map_or(name, |(_, tag)| tag),
        "io.containerd.image.name": name,
    });
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }))?;
    let layout = serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?;

    let mut blobs =
        [&layer, &config, &manifest].map(|b| (format!("blobs/sha256/{}", b.hash), b.bytes.as_slice()));
    blobs.sort();
    let mut entries = vec![("blobs/", 0o755, &[][..]), ("blobs/sha256/", 0o755, &[])];
    entries.extend(blobs.iter().map(|(path, bytes)| (path.as_str(), 0o644, *bytes)));
    entries.extend([("index.json", 0o644, index.as_slice()), ("oci-layout", 0o644, layout.as_slice())]);
    Ok(Image { archive: tar(entries)?, digest: format!("sha256:{}", manifest.hash) })
}

/// An archive of files of root's, and of folders, whose names end with a slash, all of the year 1970.
fn tar<'a>(entries: impl IntoIterator<Item = (&'a str, u32, &'a [u8])>) -> anyhow::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for (path, mode, bytes) in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(if path.ends_with('/') { EntryType::Directory } else { EntryType::Regular });
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, bytes)?;
    }
    Ok(builder.into_inner()?)
}

fn hash(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    const NAME: &str = "localhost/portolan:1.2.3";

    fn image(program: &[u8]) -> Image {
        archive(NAME, "1.2.3", "amd64", program).expect("an image")
    }

    /// The files of an archive, by their paths; asserts that nothing in it is of this time or this machine.
    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut last = String::new();
        for entry in tar::Archive::new(archive).entries().expect("an archive") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").to_string_lossy().into_owned();
            let header = entry.header();
            assert_eq!(
                (header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()),
                (0, 0, 0),
                "{path}"
            );
            assert!(last < path, "{last} before {path}");
            last.clone_from(&path);
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("its bytes");
            if !path.ends_with('/') {
                files.insert(path, bytes);
            }
        }
        files
    }

    /// The blob that a descriptor leads to; asserts that it is that one.
    fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let hex = descriptor["digest"].as_str().and_then(|d| d.strip_prefix("sha256:")).expect("a digest");
        let bytes = &files[&format!("blobs/sha256/{hex}")];
        assert_eq!((hash(bytes).as_str(), descriptor["size"].as_u64()), (hex, Some(bytes.len() as u64)));
        bytes
    }

    #[test]
    fn the_same_program_is_the_same_image() {
        let (one, two, other) = (image(b"program"), image(b"program"), image(b"another"));
        assert_eq!((&one.digest, &one.archive), (&two.digest, &two.archive));
        assert_ne!(one.digest, other.digest);
    }

    #[test]
    fn each_descriptor_leads_to_its_blob_and_the_layer_to_the_program() {
        let image = image(b"program");
        let files = files(&image.archive);
        assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let entry = &index["manifests"][0];
        assert_eq!(entry["digest"], image.digest.as_str());
        assert_eq!(entry["annotations"]["io.containerd.image.name"], NAME);
        assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], "1.2.3");
        let manifest: Value = serde_json::from_slice(blob(&files, entry)).unwrap();
        let config: Value = serde_json::from_slice(blob(&files, &manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/portolan"]));
        let mut layer = Vec::new();
        let zipped = blob(&files, &manifest["layers"][0]);
        flate2::read::GzDecoder::new(zipped).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", hash(&layer))]));
        assert_eq!(self::files(&layer), BTreeMap::from([("portolan".to_owned(), b"program".to_vec())]));
        assert_eq!(files.len(), 5, "nothing else is in it");
    }
}
