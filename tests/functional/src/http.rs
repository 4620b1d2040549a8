//! One HTTP request at a time, for the APIs that stories ask: HTTP/1.0, no TLS, no redirects.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PATIENCE: Duration = Duration::from_secs(30);

/// A status and a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Such as 200.
    pub status: u16,
    /// Headers as they came, one a line.
    pub headers: String,
    /// The body, as text.
    pub body: String,
}

impl Response {
    /// The body if the status is 200, else an error with both.
    pub fn ok(self) -> Result<String> {
        if self.status == 200 {
            return Ok(self.body);
        }
        bail!("HTTP status {}: {}", self.status, self.body)
    }
}

/// GETs `path` from a TCP address, in the calling thread's network namespace.
pub fn get(address: SocketAddr, path: &str) -> Result<Response> {
    ask(connect(address)?, path).with_context(|| format!("GET http://{address}{path}"))
}

/// An answer as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    /// As they came, one a line.
    pub headers: String,
    /// As it came.
    pub body: Vec<u8>,
    /// From the question to the last byte.
    pub took: Duration,
}

/// GETs `path` with more headers, each ended by a line break.
pub fn get_bytes(address: SocketAddr, path: &str, headers: &str) -> Result<Answer> {
    let mut stream = connect(address)?;
    let mut answer = Vec::new();
    let start = Instant::now();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n")?;
    stream.read_to_end(&mut answer)?;
    let took = start.elapsed();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.context("an answer without an end of its headers")?;
    let body = answer.split_off(end + 4);
    Ok(Answer { headers: String::from_utf8_lossy(&answer).into_owned(), body, took })
}

/// GETs `path` from a Unix socket.
pub fn get_unix(socket: &Path, path: &str) -> Result<Response> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    ask(stream, path).with_context(|| format!("GET {path} from {}", socket.display()))
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// `text` with what has a meaning in a query percent-encoded.
pub fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

fn ask(mut stream: impl Read + Write, path: &str) -> Result<Response> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: */*\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer))
}

fn parse(answer: &str) -> Result<Response> {
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its headers")?;
    let (first, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("no status in `{first}`"))?;
    Ok(Response { status, headers: headers.to_owned(), body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let answer = parse("HTTP/1.0 404 Not Found\r\nA: b\r\n\r\nno\r\n\r\nway").unwrap();
        assert_eq!((answer.status, answer.headers.as_str()), (404, "A: b"));
        assert_eq!(answer.body, "no\r\n\r\nway");
        assert!(answer.ok().unwrap_err().to_string().contains("404"));
        assert!(parse("nonsense").is_err());
    }

    #[test]
    fn a_query_is_encoded() {
        assert_eq!(encode("up{a=\"b\"}"), "up%7Ba%3D%22b%22%7D");
    }
}
