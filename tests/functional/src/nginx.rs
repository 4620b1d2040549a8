//! A real web server: Debian's nginx with a configuration of its own, in a story's namespace.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::http;
use crate::netns::Netns;
use crate::process::{Daemon, require};
use crate::sweep::own_name;

/// A running nginx. Ended on `Drop`.
#[derive(Debug)]
pub struct Nginx {
    address: SocketAddr,
    // In this order: the daemon ends before its folder goes.
    daemon: Daemon,
    _folder: TempDir,
}

impl Nginx {
    /// Starts nginx with `workers` worker processes on `address`, in `netns`. `/` answers with
    /// `body_bytes` bytes; `/status` with nginx's own counts (`stub_status`).
    ///
    /// `wrap` may change the command, as [`crate::cgroup::Cgroup::wrap`] does.
    pub fn start(
        netns: &Netns,
        address: SocketAddr,
        workers: u32,
        body_bytes: usize,
        wrap: impl FnOnce(Command) -> Command,
    ) -> Result<Self> {
        let program = require("nginx", "nginx-light")?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("{}-", own_name("nginx")))
            .tempdir()
            .context("making a folder for nginx")?;
        let path = folder.path();
        fs::create_dir(path.join("root"))?;
        fs::write(path.join("root/index.html"), "x".repeat(body_bytes))?;
        fs::write(path.join("nginx.conf"), configuration(&path.to_string_lossy(), address, workers))?;
        let mut nginx = Command::new(program);
        nginx.args(["-p", &path.to_string_lossy(), "-c", "nginx.conf", "-e", "error.log"]);
        let mut daemon = Daemon::start(&mut netns.wrap(&wrap(nginx)), &path.join("output.log"))?;
        daemon.wait_ready(Duration::from_secs(10), || {
            netns.enter(|| http::get(address, "/status")).is_ok_and(|answer| answer.status == 200)
        })?;
        Ok(Self { address, daemon, _folder: folder })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The master's process id.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }
}

fn configuration(folder: &str, address: SocketAddr, workers: u32) -> String {
    format!(
        "daemon off; user root; worker_processes {workers}; pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen {address};
        root {folder}/root;
        location = /status {{ stub_status; }}
    }}
}}
"
    )
}
