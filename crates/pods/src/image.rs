//! What an image's name means on a node without a registry.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    /// The built-in server.
    Echo {
        /// It ends at once on SIGTERM.
        abrupt: bool,
    },
    /// The machine's root.
    Host,
    /// A directory.
    Directory {
        /// What becomes the container's root.
        root: PathBuf,
        /// What the image says of itself.
        settings: Settings,
    },
}

/// What an image says of itself: the part `config` of an image's configuration (OCI image-spec, config.md), as far as a
/// runtime without cgroups and health checks needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Settings {
    /// The program, unless the container has a `command`.
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments, unless the container has `args`.
    pub cmd: Option<Vec<String>>,
    /// `NAME=VALUE`, below everything that the container says.
    pub env: Option<Vec<String>>,
    /// Where the program starts, unless the container says where.
    pub working_dir: String,
    /// `UID[:GID]` or names of the image's `/etc/passwd` and `/etc/group`.
    pub user: String,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    config: Settings,
}

impl Settings {
    /// The words to run: a container's `command` sets aside what the image would run, its `args` only the arguments.
    pub fn words(&self, command: &[String], args: &[String]) -> Vec<String> {
        let of = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let (program, own) = if command.is_empty() {
            (of(&self.entrypoint), of(&self.cmd))
        } else {
            (command.to_vec(), Vec::new())
        };
        let arguments = if args.is_empty() { own } else { args.to_vec() };
        program.into_iter().chain(arguments).collect()
    }

    /// The user and group that the image wants to run as; names are looked up in the root's own files.
    pub fn ids(&self, root: &Path) -> Result<(Option<u32>, Option<u32>), String> {
        let (user, group) = self.user.split_once(':').unwrap_or((&self.user, ""));
        let find = |name: &str, file: &str, column: usize| {
            let text = fs::read_to_string(root.join(file)).unwrap_or_default();
            let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
            let entry = fields.into_iter().find(|fields| fields.first() == Some(&name));
            entry.and_then(|fields| fields.get(column).and_then(|id| id.parse().ok()))
        };
        let id = |name: &str, file: &str| match name {
            "" => Ok(None),
            name => match name.parse().ok().or_else(|| find(name, file, 2)) {
                Some(id) => Ok(Some(id)),
                None => {
                    Err(format!("the image runs as {name:?}, which its /{file} doesn't have; set runAsUser"))
                }
            },
        };
        let uid = id(user, "etc/passwd")?;
        let gid = if group.is_empty() { find(user, "etc/passwd", 3) } else { id(group, "etc/group")? };
        Ok((uid, gid))
    }
}

/// A directory as an image: an unpacked one if it holds `rootfs` and `config.json`, else a root as it is.
fn directory(name: &str, path: &Path) -> Result<Image, String> {
    let (root, file) = (path.join("rootfs"), path.join("config.json"));
    if !root.is_dir() || !file.is_file() {
        return Ok(Image::Directory { root: path.to_owned(), settings: Settings::default() });
    }
    let failed = |error: &dyn std::fmt::Display| {
        format!("--image {name}: {}: {error}; it must be an OCI image's configuration", file.display())
    };
    let text = fs::read(&file).map_err(|error| failed(&error))?;
    // Of a list serde would make a configuration as well, all of it the default.
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&text).map_err(|error| failed(&error))?;
    let read = Configuration::deserialize(serde_json::Value::Object(object));
    let read = read.map_err(|error| failed(&error))?;
    Ok(Image::Directory { root, settings: read.config })
}

/// The images of one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Images {
    directories: BTreeMap<String, Image>,
    allow_host: bool,
}

/// `docker.io/library/echo:latest` as `echo`: without a default registry, a default namespace and a default tag.
fn normal(reference: &str) -> &str {
    // A digest is as good as no tag here: there is one image of a name.
    let reference = reference.split_once('@').map_or(reference, |(name, _)| name);
    let reference = reference.strip_suffix(":latest").unwrap_or(reference);
    let reference = reference.strip_prefix("docker.io/").unwrap_or(reference);
    reference.strip_prefix("library/").unwrap_or(reference)
}

impl Images {
    /// Those of a node's configuration; the error names the image that can't be read.
    pub fn new(directories: &BTreeMap<String, PathBuf>, allow_host: bool) -> Result<Images, String> {
        let directories = directories
            .iter()
            .map(|(name, path)| Ok((normal(name).to_owned(), directory(name, path)?)))
            .collect::<Result<_, String>>()?;
        Ok(Images { directories, allow_host })
    }

    /// What a reference means here; otherwise what the user can do about it.
    pub fn resolve(&self, reference: &str) -> Result<Image, String> {
        let name = normal(reference);
        if let Some(image) = self.directories.get(name) {
            return Ok(image.clone());
        }
        match name {
            "echo" => Ok(Image::Echo { abrupt: false }),
            "echo-abrupt" => Ok(Image::Echo { abrupt: true }),
            "host" if self.allow_host => Ok(Image::Host),
            "host" => Err("image \"host\" shows the machine's files to the container: \
                           start the node with --allow-host-image to permit it"
                .to_owned()),
            _ => Err(format!(
                "image {reference:?} is not on this node, which has no registry: start the node with \
                 --image {name}=DIR (a directory that becomes the container's root), or use \"echo\", \"echo-abrupt\" or \
                 \"host\""
            )),
        }
    }

    /// `status.containerStatuses[].imageID`.
    pub fn id(reference: &str) -> String {
        format!("portolan://{}", normal(reference))
    }

    /// The names that are always there or configured.
    pub fn names(&self) -> Vec<String> {
        let mut names = vec!["echo".to_owned(), "echo-abrupt".to_owned()];
        if self.allow_host {
            names.push("host".to_owned());
        }
        names.extend(self.directories.keys().cloned());
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_spellings_of_a_name_mean_one_image() {
        let directories = BTreeMap::from([("registry.example/web:v1".to_owned(), PathBuf::from("/srv/web"))]);
        let images = Images::new(&directories, false).expect("images");
        let echo = Ok(Image::Echo { abrupt: false });
        for name in
            ["echo", "echo:latest", "docker.io/library/echo", "docker.io/library/echo:latest", "library/echo"]
        {
            assert_eq!(images.resolve(name), echo, "{name}");
        }
        assert_eq!(images.resolve("echo-abrupt"), Ok(Image::Echo { abrupt: true }));
        let web = Image::Directory { root: "/srv/web".into(), settings: Settings::default() };
        assert_eq!(images.resolve("registry.example/web:v1").as_ref(), Ok(&web));
        assert_eq!(images.resolve("registry.example/web:v1@sha256:00"), Ok(web));
    }

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let images = Images::new(&BTreeMap::new(), false).expect("images");
        assert!(images.resolve("nginx:1.29").is_err_and(|text| text.contains("--image nginx:1.29=DIR")));
        assert!(images.resolve("host").is_err_and(|text| text.contains("--allow-host-image")));
        let images = Images::new(&BTreeMap::new(), true).expect("images");
        assert_eq!(images.resolve("host"), Ok(Image::Host));
    }

    #[test]
    fn an_unpacked_image_brings_its_program_environment_and_user() {
        let place = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(place.path().join("rootfs/etc")).expect("a root");
        fs::write(place.path().join("rootfs/etc/passwd"), "root:x:0:0::/:\nweb:x:101:102::/:\n")
            .expect("written");
        let write = |text: &str| fs::write(place.path().join("config.json"), text).expect("written");
        let read = || {
            let directories = BTreeMap::from([("web".to_owned(), place.path().to_owned())]);
            Images::new(&directories, false)?.resolve("web")
        };
        write(
            r#"{"architecture": "amd64", "config": {"Entrypoint": ["/web"], "Cmd": ["serve"], "User": "web"}}"#,
        );
        let Ok(Image::Directory { root, settings }) = read() else { panic!("{:?}", read()) };
        assert_eq!(root, place.path().join("rootfs"));
        assert_eq!(settings.words(&[], &[]), words(&["/web", "serve"]));
        assert_eq!(settings.words(&[], &words(&["check"])), words(&["/web", "check"]));
        assert_eq!(
            settings.words(&words(&["sh"]), &[]),
            words(&["sh"]),
            "the image's arguments go with its program"
        );
        assert_eq!(settings.words(&words(&["sh"]), &words(&["-c"])), words(&["sh", "-c"]));
        assert_eq!(settings.ids(&root), Ok((Some(101), Some(102))));
        let user = |user: &str| Settings { user: user.to_owned(), ..Settings::default() }.ids(&root);
        assert_eq!(user("7:8"), Ok((Some(7), Some(8))));
        assert_eq!(user(""), Ok((None, None)));
        assert!(user("nobody").is_err_and(|text| text.contains("runAsUser")));
        write("[]");
        assert!(read().is_err_and(|text| text.contains("--image web") && text.contains("config.json")));
    }
}
