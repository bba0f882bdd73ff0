//! `cargo xtask image`: the program as an image that containerd imports, without docker and without a registry.
//!
//! Absent on purpose: pushing an image (crane, skopeo and the like do), and images of other parts; there is one binary.

mod elf;
mod image;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use clap::Parser as _;
use serde_json::Value;

/// Build what takes more than cargo alone.
#[derive(clap::Parser)]
#[command(bin_name = "cargo xtask")]
enum Task {
    /// Build a static portolan and write it as an OCI image archive, the same bytes from the same sources.
    Image(ImageArgs),
}

#[derive(clap::Args)]
struct ImageArgs {
    /// Where to write the archive; by default target/image/portolan.tar.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image's name and tag; by default localhost/portolan and the version. No registry is called localhost: nobody asks one.
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<String>,
    /// What to build for; by default this machine. Its toolchain must be installed.
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// Take this program, which must be static, instead of building one.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Image(args) => image(args),
    }
}

fn image(args: ImageArgs) -> anyhow::Result<()> {
    let workspace = Workspace::read()?;
    let target = args.target.map_or_else(host, Ok)?;
    let name = args.name.unwrap_or_else(|| format!("localhost/portolan:{}", workspace.version));
    let program = match args.program {
        Some(program) => program,
        None => build(&workspace, &target)?,
    };
    let named = || program.display().to_string();
    let bytes = fs::read(&program).with_context(named)?;
    if let Some(interpreter) = elf::interpreter(&bytes).with_context(named)? {
        bail!(
            "{}: it is not static, it asks for {interpreter}; build it with -C target-feature=+crt-static",
            named()
        );
    }
    let image = image::archive(&name, &workspace.version, architecture(&target)?, &bytes)?;
    let output = args.output.unwrap_or_else(|| workspace.target.join("image/portolan.tar"));
    if let Some(folder) = output.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::write(&output, &image.archive).with_context(|| output.display().to_string())?;
    println!("{name}@{}", image.digest);
    println!("{}: {:.1} MB", output.display(), image.archive.len() as f64 / 1e6);
    println!("ctr -n k8s.io images import {}", output.display());
    Ok(())
}

/// What cargo says of this workspace.
struct Workspace {
    root: PathBuf,
    target: PathBuf,
    /// The program's.
    version: String,
}

impl Workspace {
    fn read() -> anyhow::Result<Workspace> {
        let metadata = output(Command::new(cargo()).args(["metadata", "--format-version=1", "--no-deps"]))?;
        let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
        let path =
            |field: &str| metadata[field].as_str().map(PathBuf::from).with_context(|| format!("no {field}"));
        let packages = metadata["packages"].as_array().context("no packages")?;
        let portolan = packages.iter().find(|p| p["name"] == "portolan").context("no package portolan")?;
        Ok(Workspace {
            root: path("workspace_root")?,
            target: path("target_directory")?,
            version: portolan["version"].as_str().context("no version")?.to_owned(),
        })
    }
}

/// A static release build for `target`; where it is.
fn build(workspace: &Workspace, target: &str) -> anyhow::Result<PathBuf> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => std::env::home_dir().context("neither CARGO_HOME nor a home")?.join(".cargo"),
    };
    // Where sources are on this machine is no part of the program.
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        remap(&workspace.root, "/portolan"),
        remap(&home, "/cargo"),
    ];
    // With a target named, the flags are not those of build scripts and macros, which can't be static.
    let status = Command::new(cargo())
        .args(["build", "--release", "--locked", "--bin=portolan", "--target", target])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .current_dir(&workspace.root)
        .status()
        .context("cargo build")?;
    ensure!(status.success(), "cargo build: {status}");
    Ok(workspace.target.join(target).join("release/portolan"))
}

/// What OCI calls the processor of a target.
fn architecture(target: &str) -> anyhow::Result<&'static str> {
    match target.split('-').next() {
        Some("x86_64") => Ok("amd64"),
        Some("aarch64") => Ok("arm64"),
        _ => bail!("--target: {target:?} is neither x86_64-… nor aarch64-…"),
    }
}

/// This machine's target.
fn host() -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = output(Command::new(rustc).arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// What a program prints.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let named = format!("{command:?}");
    let output = command.output().with_context(|| named.clone())?;
    ensure!(output.status.success(), "{named}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
