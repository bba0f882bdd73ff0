//! What an image's name means on a node without a registry.

use std::collections::BTreeMap;
use std::path::PathBuf;

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
    Directory(PathBuf),
}

/// The images of one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Images {
    directories: BTreeMap<String, PathBuf>,
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
    /// Those of a node's configuration.
    pub fn new(directories: &BTreeMap<String, PathBuf>, allow_host: bool) -> Images {
        let directories =
            directories.iter().map(|(name, path)| (normal(name).to_owned(), path.clone())).collect();
        Images { directories, allow_host }
    }

    /// What a reference means here; otherwise what the user can do about it.
    pub fn resolve(&self, reference: &str) -> Result<Image, String> {
        let name = normal(reference);
        if let Some(directory) = self.directories.get(name) {
            return Ok(Image::Directory(directory.clone()));
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

    #[test]
    fn the_spellings_of_a_name_mean_one_image() {
        let directories = BTreeMap::from([("registry.example/web:v1".to_owned(), PathBuf::from("/srv/web"))]);
        let images = Images::new(&directories, false);
        let echo = Ok(Image::Echo { abrupt: false });
        for name in
            ["echo", "echo:latest", "docker.io/library/echo", "docker.io/library/echo:latest", "library/echo"]
        {
            assert_eq!(images.resolve(name), echo, "{name}");
        }
        assert_eq!(images.resolve("echo-abrupt"), Ok(Image::Echo { abrupt: true }));
        assert_eq!(images.resolve("registry.example/web:v1"), Ok(Image::Directory("/srv/web".into())));
        assert_eq!(
            images.resolve("registry.example/web:v1@sha256:00"),
            Ok(Image::Directory("/srv/web".into()))
        );
    }

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let images = Images::new(&BTreeMap::new(), false);
        assert!(images.resolve("nginx:1.29").is_err_and(|text| text.contains("--image nginx:1.29=DIR")));
        assert!(images.resolve("host").is_err_and(|text| text.contains("--allow-host-image")));
        assert_eq!(Images::new(&BTreeMap::new(), true).resolve("host"), Ok(Image::Host));
    }
}
