//! `portolan lab`: what its verbs are told.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::lab::topology::{IpFamily, Publish};

/// Run a cluster of network namespaces on this machine.
#[derive(Args, Debug)]
pub struct LabCommand {
    /// What to do.
    #[command(subcommand)]
    pub verb: LabVerb,
}

/// The verbs of `portolan lab`.
#[derive(Subcommand, Debug)]
pub enum LabVerb {
    /// Make a cluster; it lives until Ctrl-C, or with --detach until `lab down`.
    Up(Box<Up>),
    /// End a lab: nothing of it is left.
    Down(Named),
    /// List this user's labs.
    List(List),
    /// Show a lab's machines, processes and published ports.
    Status(Status),
    /// Run a command on one of a lab's machines, with this machine's programs.
    Exec(Exec),
    /// Print the path of a lab's kubeconfig.
    Kubeconfig(Named),
    /// Try every Service from every place there is, in a lab that is up.
    Check(Named),
    /// Print what the server or a node has logged.
    Logs(Logs),
}

/// A lab's name.
#[derive(Args, Debug, Clone)]
pub struct Named {
    /// The lab's name.
    #[arg(long, value_name = "NAME", default_value = "lab", value_parser = lab_name)]
    pub name: String,
}

/// `lab up`.
#[derive(Args, Debug)]
pub struct Up {
    #[command(flatten)]
    pub named: Named,
    /// How many nodes.
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub nodes: u8,
    /// Manifests to apply: files, or directories of *.yaml, *.yml and *.json in the order of their names.
    #[arg(short, long = "filename", value_name = "FILE|DIR")]
    pub filename: Vec<PathBuf>,
    /// The cluster's IP families; the first is the primary one.
    #[arg(long, value_name = "FAMILY", value_delimiter = ',', default_value = "IPv4,IPv6")]
    pub ip_families: Vec<IpFamily>,
    /// Ranges of ClusterIPs, one of each family [default: 10.96.0.0/16,fd00:10:96::/112].
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub service_cidr: Vec<IpNet>,
    /// Addresses for Services of type LoadBalancer, on the lab's network 10.80.0.0/24, fd00:80::/64
    /// [default: 10.80.0.200-10.80.0.250,fd00:80::200-fd00:80::2ff].
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    pub pool: Vec<String>,
    /// Make a port of the nodes answer on this machine's 127.0.0.1:HOSTPORT. NodePorts are so wherever their number is free.
    #[arg(long, value_name = "HOSTPORT:PORT[/udp]")]
    pub publish: Vec<Publish>,
    /// A directory to serve to pods as an image's root, read-only.
    #[arg(long, value_name = "NAME=DIR", value_parser = image)]
    pub image: Vec<(String, PathBuf)>,
    /// Allow pods the image `host`: this machine's root, read-only.
    #[arg(long)]
    pub allow_host_image: bool,
    /// Try every Service from every place there is, then end the lab; the exit status says whether all was as expected.
    #[arg(long, conflicts_with = "detach")]
    pub check: bool,
    /// Return as soon as all is up; `lab down` ends it.
    #[arg(short, long)]
    pub detach: bool,
}

/// `lab list`.
#[derive(Args, Debug)]
pub struct List {
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// `lab status`.
#[derive(Args, Debug)]
pub struct Status {
    #[command(flatten)]
    pub named: Named,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// `lab exec`.
#[derive(Args, Debug)]
pub struct Exec {
    #[command(flatten)]
    pub named: Named,
    /// `client`, `server`, or a node's name.
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// The command.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// `lab logs`.
#[derive(Args, Debug)]
pub struct Logs {
    #[command(flatten)]
    pub named: Named,
    /// `server`, a node's name, `dns-` with a node's name, or `init`.
    #[arg(value_name = "MACHINE")]
    pub machine: String,
}

/// The form of an output.
#[derive(Clone, Copy, Debug, Default, ValueEnum, PartialEq, Eq)]
pub enum Output {
    /// A table.
    #[default]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// A lab's name is a directory's name and a cluster's name in a kubeconfig: what Kubernetes calls a DNS label.
fn lab_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = !text.starts_with('-') && !text.ends_with('-');
    if text.is_empty() || text.len() > 40 || !text.chars().all(fits) || !ends {
        return Err("expected at most 40 lower-case letters, digits and inner hyphens".into());
    }
    Ok(text.to_owned())
}

fn image(text: &str) -> Result<(String, PathBuf), String> {
    let (name, dir) = text.split_once('=').ok_or("expected NAME=DIR")?;
    match std::fs::canonicalize(dir) {
        Ok(dir) if dir.is_dir() => Ok((name.to_owned(), dir)),
        Ok(_) => Err(format!("{dir} is not a directory")),
        Err(error) => Err(format!("{dir}: {error}")),
    }
}
