//! Docker's API without Docker: it tells of whatever containers a story wants, or nothing.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::cgroup::Cgroup;

/// What no runtime has made, and its path says Docker has: its id, and the cgroup. Each number is another one.
pub fn container(number: u32) -> Result<(String, Cgroup)> {
    let id = format!("{:064x}", (u128::from(std::process::id()) << 64) + u128::from(number));
    let cgroup = Cgroup::new(format!("docker/{id}"))?;
    Ok((id, cgroup))
}

/// A runtime's API, on a Unix socket.
#[derive(Debug)]
pub struct Api {
    folder: TempDir,
}

impl Api {
    /// One that tells of these containers, as `/containers/json` does.
    pub fn telling_of(containers: &Value) -> Result<Self> {
        let list = containers.to_string();
        Self::serve(move |listener| {
            for stream in listener.incoming().flatten() {
                let list = list.clone();
                thread::spawn(move || answer(&stream, &list));
            }
        })
    }

    /// One that takes everybody's word and never says any.
    pub fn silent() -> Result<Self> {
        Self::serve(|listener| {
            let mut asking = Vec::new();
            for stream in listener.incoming() {
                asking.push(stream);
            }
        })
    }

    fn serve(serve: impl FnOnce(&UnixListener) + Send + 'static) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let listener =
            UnixListener::bind(folder.path().join("docker.sock")).context("serving Docker's API")?;
        thread::spawn(move || serve(&listener));
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }
}

fn answer(mut stream: &UnixStream, list: &str) -> Result<()> {
    let mut lines = BufReader::new(stream).lines();
    while let Some(request) = lines.next().transpose()? {
        while lines.next().transpose()?.is_some_and(|header| !header.is_empty()) {}
        let body = if request.contains("/version") {
            r#"{"Version":"20.10","ApiVersion":"1.41","Components":[]}"#
        } else if request.contains("/containers/json") {
            list
        } else {
            // Events: none, ever.
            write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            continue;
        };
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json";
        write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}
