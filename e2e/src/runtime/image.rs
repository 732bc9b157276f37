//! An OCI image of busybox and curl, written by hand: no registry and no builder is needed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use tunproxy_testkit::process::run;
use tunproxy_testkit::servers::sha256;

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 6] = ["sh", "sleep", "nslookup", "ping", "cat", "ip"];
/// Debian's static busybox crashes in getaddrinfo where no C library is around, so what resolves names is curl with
/// its libraries.
const DYNAMIC: &str = "/usr/bin/curl";

/// Writes an OCI layout as a tar file, which `ctr images import` takes under `name`. It serves as the sandbox's image
/// too: its command sleeps.
pub fn write_busybox(archive: &Path, name: &str) -> Result<()> {
    let work = tempfile::tempdir()?;
    let root = work.path();
    let blobs = root.join("layout/blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layer = root.join("layer.tar");
    write_layer(root, &layer)?;
    let layer_digest = sha256(&layer)?;
    let layer = store(&blobs, &layer, "application/vnd.oci.image.layer.v1.tar")?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin:/usr/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
    });
    let config = store_json(root, &blobs, &config, "application/vnd.oci.image.config.v1+json")?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest = store_json(root, &blobs, &manifest, "application/vnd.oci.image.manifest.v1+json")?;
    manifest["annotations"] = json!({"io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(root.join("layout/index.json"), index.to_string())?;
    fs::write(root.join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar(&root.join("layout"), archive)
}

fn write_layer(root: &Path, layer: &Path) -> Result<()> {
    let bin = root.join("rootfs/bin");
    fs::create_dir_all(&bin)?;
    for directory in ["etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join("rootfs").join(directory))?;
    }
    fs::copy(BUSYBOX, bin.join("busybox"))?;
    for applet in APPLETS {
        symlink("busybox", bin.join(applet))?;
    }
    for file in [DYNAMIC.to_owned()].into_iter().chain(libraries(DYNAMIC)?) {
        let target = root.join("rootfs").join(file.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap_or(root))?;
        fs::copy(&file, target)?;
    }
    tar(&root.join("rootfs"), layer)
}

/// The files that `ldd` names, the loader among them.
fn libraries(program: &str) -> Result<Vec<String>> {
    let text = run(Command::new("ldd").arg(program))?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(ToOwned::to_owned).collect())
}

fn tar(directory: &Path, archive: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    run(command.arg("-C").arg(directory).arg("-cf").arg(archive).arg(".")).map(drop)
}

/// Puts a file among the blobs; gives its descriptor.
fn store(blobs: &Path, file: &Path, media_type: &str) -> Result<Value> {
    let digest = sha256(file)?;
    let size = fs::metadata(file)?.len();
    fs::rename(file, blobs.join(&digest))?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size}))
}

fn store_json(root: &Path, blobs: &Path, document: &Value, media_type: &str) -> Result<Value> {
    let file = root.join("document.json");
    fs::write(&file, document.to_string())?;
    store(blobs, &file, media_type)
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
