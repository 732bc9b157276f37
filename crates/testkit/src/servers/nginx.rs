//! nginx: HTTP/1.1 and HTTP/2, plain and TLS, several names on the same addresses.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::{Background, run};
use crate::servers::{START, program};

/// The names one web server answers to, on the addresses it listens on.
#[derive(Clone, Debug)]
pub struct WebNames {
    pub addresses: Vec<IpAddr>,
    pub names: Vec<String>,
}

/// Every name has: `/` (a line with name, protocol and client), `/files/` (the tree of [`Nginx::files`]), `/upload/`
/// (PUT), `/large` is whatever a test writes into files. Port 80 and, with TLS and HTTP/2, 443.
#[derive(Debug)]
pub struct Nginx {
    _process: Background,
    directory: TempDir,
}

impl Nginx {
    pub fn start(namespace: &Namespace, sites: &[WebNames]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("tpt-nginx-").tempdir()?;
        let root = directory.path();
        for folder in ["files", "upload", "body"] {
            fs::create_dir(root.join(folder))?;
        }
        certificates(root, sites)?;
        fs::write(root.join("nginx.conf"), configuration(root, sites))?;
        let mut command = namespace.command(program("nginx")?);
        command
            .arg("-p")
            .arg(root)
            .arg("-c")
            .arg(root.join("nginx.conf"))
            .arg("-e")
            .arg(root.join("error.log"));
        let mut process = Background::spawn(&mut command, "nginx", &root.join("nginx.log"))?;
        let addresses: Vec<IpAddr> = sites.iter().flat_map(|site| site.addresses.clone()).collect();
        process.wait_ready(START, || {
            addresses.iter().all(|&ip| namespace.accepts(SocketAddr::new(ip, 443), START))
        })?;
        Ok(Self { directory, _process: process })
    }

    /// What `/files/` serves.
    pub fn files(&self) -> PathBuf {
        self.directory.path().join("files")
    }

    /// Where PUT to `/upload/` goes.
    pub fn uploads(&self) -> PathBuf {
        self.directory.path().join("upload")
    }

    /// The certificate authority that clients must trust.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// One line a request: client, Host, protocol, request line, status.
    pub fn access_log(&self) -> String {
        fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default()
    }
}

fn configuration(root: &Path, sites: &[WebNames]) -> String {
    let root = root.display();
    let mut text = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {root}/nginx.pid;\nerror_log {root}/error.log warn;\n\
         events {{ worker_connections 16384; }}\nworker_rlimit_nofile 20000;\nhttp {{\n\
         log_format short '$remote_addr $host $server_protocol \"$request\" $status';\n\
         access_log {root}/access.log short;\n\
         client_body_temp_path {root}/body;\nclient_max_body_size 0;\n\
         send_timeout 15m;\nclient_body_timeout 15m;\nkeepalive_requests 1000000;\n\
         proxy_temp_path {root}/body;\nfastcgi_temp_path {root}/body;\nuwsgi_temp_path {root}/body;\nscgi_temp_path {root}/body;\n\
         sendfile on;\ndefault_type application/octet-stream;\n\
         ssl_certificate {root}/server.pem;\nssl_certificate_key {root}/server.key;\n"
    );
    for site in sites {
        let names = site.names.join(" ");
        text.push_str("server {\n");
        for ip in &site.addresses {
            let (plain, tls) = (SocketAddr::new(*ip, 80), SocketAddr::new(*ip, 443));
            let _ = writeln!(text, "listen {plain};\nlisten {tls} ssl http2;");
        }
        let _ = writeln!(
            text,
            "server_name {names};\n\
             location / {{ return 200 \"$host over $server_protocol for $remote_addr\\n\"; }}\n\
             location /files/ {{ root {root}; }}\n\
             location /upload/ {{ root {root}; dav_methods PUT; }}\n}}"
        );
    }
    text.push_str("}\n");
    text
}

/// A fresh authority and one server certificate for all the names and addresses.
fn certificates(root: &Path, sites: &[WebNames]) -> Result<()> {
    let names = sites.iter().flat_map(|site| site.names.iter().map(|name| format!("DNS:{name}")));
    let addresses = sites.iter().flat_map(|site| site.addresses.iter().map(|ip| format!("IP:{ip}")));
    let alternatives: Vec<String> = names.chain(addresses).collect();
    fs::write(
        root.join("server.ext"),
        format!("subjectAltName={}\nbasicConstraints=CA:FALSE\n", alternatives.join(",")),
    )?;
    let openssl = |line: &str| run(Command::new("openssl").args(line.split_whitespace()).current_dir(root));
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {curve} -keyout ca.key -out ca.pem -days 2 -subj /CN=testkit-ca"))?;
    openssl(&format!("req {curve} -keyout server.key -out server.csr -subj /CN=testkit"))?;
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem",
    )?;
    Ok(())
}
