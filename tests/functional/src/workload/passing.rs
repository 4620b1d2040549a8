//! A connection that is passed to another process over a Unix socket (`SCM_RIGHTS`).

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::{Client, Counts, Held};

/// Connects, and passes the connection to the [`Taker`] at `by`. Its bytes are not this side's to count.
pub fn pass(client: &Client, by: &Path) -> Result<Counts> {
    let held = Held::open(client, 1, client.timeout)?;
    let connection = held.connections().first().context("connecting")?;
    let stream = UnixStream::connect(by).with_context(|| format!("connecting to {}", by.display()))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let fds = [connection.as_fd()];
    rights.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&stream, &[IoSlice::new(b"1")], &mut rights, SendFlags::empty()).context("passing it on")?;
    Ok(held.counts().clone())
}

/// Where a process waits for a connection. Its file goes on `Drop`.
#[derive(Debug)]
pub struct Taker {
    listener: UnixListener,
    path: PathBuf,
}

impl Taker {
    /// Listens at `path`.
    pub fn at(path: PathBuf) -> Result<Self> {
        let listener =
            UnixListener::bind(&path).with_context(|| format!("listening at {}", path.display()))?;
        Ok(Self { listener, path })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for a connection, and has it from then on.
    pub fn take(&self) -> Result<TcpStream> {
        let (stream, _) = self.listener.accept().context("waiting for who passes a connection")?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&stream, &mut [IoSliceMut::new(&mut [0])], &mut rights, RecvFlags::CMSG_CLOEXEC)
            .context("taking a connection over")?;
        let taken = rights.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok(taken.context("nothing was passed")?.into())
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
