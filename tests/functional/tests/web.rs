//! The agent's HTTP server: whom it turns away, and when it has enough.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use functional::process::{output, require, wait_until};
use functional::tcptide::{Agent, Output, Streaming, Tcptide};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);

fn agent(args: &[&str]) -> Agent {
    Tcptide::find().unwrap().agent(args).unwrap()
}

/// A connection on which `request` was said.
fn said(agent: &Agent, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(agent.address()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// All that comes until the other side ends the connection.
fn answer(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer on a connection that stays open: the head, and as much of a body as it says.
fn one_answer(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with("\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0].into());
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    text + &String::from_utf8(body).unwrap()
}

fn rejected(agent: &Agent, reason: &str) -> u64 {
    agent.scrape().unwrap().sum("tcptide_http_rejected_total", &[("reason", reason)]).unwrap() as u64
}

#[test]
fn what_is_no_plain_request_is_refused_and_counted() {
    let agent = agent(&[]);
    for reason in ["method", "head_size", "malformed"] {
        assert_eq!(rejected(&agent, reason), 0);
    }
    for method in ["POST", "DELETE", "OPTIONS", "TRACE", "BREW"] {
        for path in ["/metrics", "/nothing/here"] {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let text = answer(said(&agent, &request));
            assert!(text.starts_with("HTTP/1.1 405 "), "{method}: {text}");
            assert!(text.contains("allow: GET, HEAD\r\n"), "{method}: {text}");
        }
    }
    assert_eq!(rejected(&agent, "method"), 10);
    let head = answer(said(&agent, "HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");

    let long = "x".repeat(20 << 10);
    let many = "X: y\r\n".repeat(65);
    for request in [
        format!("GET /metrics HTTP/1.1\r\nX: {long}\r\n\r\n"),
        format!("GET /{long} HTTP/1.1\r\n\r\n"),
        format!("GET /metrics HTTP/1.1\r\n{many}\r\n"),
    ] {
        let text = answer(said(&agent, &request));
        assert!(text.starts_with("HTTP/1.1 431 ") || text.starts_with("HTTP/1.1 414 "), "{text}");
    }
    assert_eq!(rejected(&agent, "head_size"), 3);
    // As many headers as may be.
    let most = "X: y\r\n".repeat(62);
    let request = format!("GET /-/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{most}\r\n");
    assert!(answer(said(&agent, &request)).starts_with("HTTP/1.1 200 "));

    for request in ["nonsense\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\x16\x03\x01\x02\0\x01\0\x01"] {
        let text = answer(said(&agent, request));
        assert!(text.starts_with("HTTP/1.1 400 "), "{request:?}: {text}");
    }
    assert_eq!(rejected(&agent, "malformed"), 3);
}

#[test]
fn who_dawdles_is_cut_off_while_others_are_answered() {
    let agent = agent(&["--web.read-timeout", "1s", "--web.idle-timeout", "2s"]);
    // A byte now and then is no request.
    let mut slow = said(&agent, "GET /metrics HTTP/1.1\r\n");
    let began = Instant::now();
    let feeding = thread::spawn({
        let mut slow = slow.try_clone().unwrap();
        move || {
            while slow.write_all(b"X: y\r\n").is_ok() && began.elapsed() < SOON {
                thread::sleep(Duration::from_millis(50));
            }
            began.elapsed()
        }
    });
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 408 ") && text.contains("in time"), "{text}");
    assert!((1.0..4.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    drop(slow);
    assert!(feeding.join().unwrap() < SOON);
    // Nor is silence.
    let began = Instant::now();
    assert!(answer(said(&agent, "")).starts_with("HTTP/1.1 408 "));
    assert!((0.9..4.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    assert_eq!(rejected(&agent, "read_timeout"), 2);

    // A second request may be as late as the idle time allows, and then takes no longer than the first.
    let request = "GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut kept = said(&agent, request);
    one_answer(&mut kept);
    thread::sleep(Duration::from_millis(1500));
    kept.write_all(request.as_bytes()).unwrap();
    assert!(one_answer(&mut kept).starts_with("HTTP/1.1 200 "));
    let began = Instant::now();
    kept.write_all(b"GET").unwrap();
    assert!(answer(kept).starts_with("HTTP/1.1 408 "));
    assert!((0.9..1.9).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    assert_eq!(rejected(&agent, "idle_timeout"), 0);

    let mut idle = said(&agent, request);
    one_answer(&mut idle);
    let began = Instant::now();
    assert_eq!(answer(idle), "");
    assert!((1.9..5.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    assert_eq!(rejected(&agent, "idle_timeout"), 1);
}

#[test]
fn who_does_not_read_the_answer_is_cut_off() {
    let agent = agent(&["--web.write-timeout", "1s"]);
    // More than both ends' buffers hold, asked for at a go and never read.
    let size = agent.metrics().unwrap().len();
    let requests = (64 << 20) / size;
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut stream = TcpStream::connect(agent.address()).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    let began = Instant::now();
    for _ in 0..requests {
        if stream.write_all(request.as_bytes()).is_err() {
            break;
        }
    }
    wait_until("the agent to give up", SOON, || Ok((rejected(&agent, "write_timeout") == 1).then_some(())))
        .unwrap();
    assert!(began.elapsed() > Duration::from_secs(1));
    wait_until("the connection to be gone", SOON, || {
        Ok((agent.scrape()?.sum("tcptide_http_connections", &[]) == Some(1.0)).then_some(()))
    })
    .unwrap();
}

#[test]
fn no_more_connections_than_allowed() {
    let agent = agent(&["--web.max-connections", "3"]);
    let request = "GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut held: Vec<_> = (0..2).map(|_| said(&agent, request)).collect();
    for stream in &mut held {
        assert!(one_answer(stream).starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(agent.scrape().unwrap().sum("tcptide_http_connections", &[]), Some(3.0));
    let mut third = said(&agent, request);
    one_answer(&mut third);
    for _ in 0..20 {
        let text = answer(said(&agent, request));
        assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("--web.max-connections"), "{text}");
    }
    // Those who have a place keep it, and one that is given up is another's.
    third.write_all(request.as_bytes()).unwrap();
    assert!(one_answer(&mut third).starts_with("HTTP/1.1 200 "));
    drop(third);
    wait_until("the place to be free", SOON, || {
        Ok(agent.get("/-/ready").is_ok_and(|answer| answer.status == 200).then_some(()))
    })
    .unwrap();
    assert!(rejected(&agent, "connections") >= 20);
}

/// Certificates and files of a story.
struct Pki {
    folder: TempDir,
}

impl Pki {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        // As `mv` does: nobody sees half of it.
        let (path, new) = (self.path(name), self.path("new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, &path).unwrap();
        path
    }

    /// Makes `NAME.pem` and `NAME.key`, by themselves or by an authority.
    fn make(&self, name: &str, extensions: &str, by: Option<&str>) {
        let text = format!(
            "[req]\nprompt=no\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\nCN={name}\n[ext]\n{extensions}\n"
        );
        let config = self.write("openssl.cnf", &text);
        let mut command = Command::new(require("openssl", "openssl").unwrap());
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        command.args(["-days", "2", "-config", &config]);
        command.args(["-out", &self.path(&format!("{name}.pem"))]);
        command.args(["-keyout", &self.path(&format!("{name}.key"))]);
        if let Some(by) = by {
            command.args([
                "-CA",
                &self.path(&format!("{by}.pem")),
                "-CAkey",
                &self.path(&format!("{by}.key")),
            ]);
        }
        output(&mut command).unwrap();
    }

    fn authority(&self, name: &str) {
        self.make(name, "basicConstraints=critical,CA:TRUE", None);
    }

    fn issue(&self, name: &str, names: &str, by: &str) {
        self.make(name, &format!("basicConstraints=critical,CA:FALSE\nsubjectAltName={names}"), Some(by));
    }

    /// For `curl`: whom to trust, and who it is.
    fn curl(
        &self,
        address: SocketAddr,
        trusted: &str,
        who: Option<&str>,
        more: &[&str],
    ) -> Result<String, String> {
        let mut command = Command::new(require("curl", "curl").unwrap());
        command.args(["-sS", "-i", "--max-time", "20", "--cacert", &self.path(&format!("{trusted}.pem"))]);
        if let Some(who) = who {
            command.args(["--cert", &self.path(&format!("{who}.pem"))]);
            command.args(["--key", &self.path(&format!("{who}.key"))]);
        }
        command.args(more).arg(format!("https://localhost:{}/metrics", address.port()));
        output(&mut command).map_err(|error| format!("{error:#}"))
    }
}

/// An agent with a web configuration, and where it serves.
fn agent_with(config: &str) -> (Streaming, SocketAddr) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let at = address.to_string();
    let agent =
        Tcptide::find().unwrap().spawn(["agent", "--web.listen-address", &at, "--web.config.file", config]);
    let agent = agent.unwrap();
    agent.wait_ready().unwrap();
    (agent, address)
}

/// A number of an answer with metrics.
fn number(answer: &str, series: &str) -> Option<f64> {
    answer.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// The bcrypt hashes of `one` and `two`, made by the C library.
const ONE: &str = "$2y$04$abcdefghijklmnopqrstuuuiMd1XkP3MYkehzxpPHB6m5Tr0FZSYG";
const TWO: &str = "$2b$05$ABCDEFGHIJKLMNOPQRSTUOpNXNyE7ehKewXynVhfWV9i59S3qBtcO";

/// As `tcptide` itself asks.
#[test]
fn who_asks_with_connect_shows_a_certificate() {
    let pki = Pki::new();
    for authority in ["ca", "other"] {
        pki.authority(authority);
    }
    for (name, by) in [("server", "ca"), ("somebody", "ca"), ("stranger", "other")] {
        pki.issue(name, "DNS:localhost", by);
    }
    let config = |version: &str| {
        format!(
            "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n  client_ca_file: ca.pem\n\
             \x20 client_auth_type: RequireAndVerifyClientCert\n  max_version: {version}\n"
        )
    };
    let (agent, at) = agent_with(&pki.write("web.yml", &config("TLS13")));
    let url = format!("https://localhost:{}", at.port());
    let ask = |args: &[&str]| {
        let args = [&["states", "-o", "json", "--connect", &url], args].concat();
        Tcptide::find().unwrap().run(args).unwrap()
    };
    let file = |name: &str| pki.path(name);
    let [ca, cert, key] = ["ca.pem", "somebody.pem", "somebody.key"].map(file);
    let [strange_cert, strange_key, missing] = ["stranger.pem", "stranger.key", "missing.pem"].map(file);
    for version in ["TLS13", "TLS12"] {
        pki.write("web.yml", &config(version));
        let with =
            |cert: &str, key: &str| ask(&["--connect-ca", &ca, "--connect-cert", cert, "--connect-key", key]);
        assert!(with(&cert, &key).success().unwrap().json().unwrap().is_array());
        let said = |output: Output, words: &[&str]| {
            let stderr = output.stderr.join("\n");
            assert_eq!(output.status.code(), Some(1), "{version}: {stderr}");
            assert!(words.iter().all(|word| stderr.contains(word)), "{version} {words:?}: {stderr}");
        };
        said(ask(&["--connect-ca", &ca]), &["--connect-cert FILE --connect-key FILE"]);
        said(with(&strange_cert, &strange_key), &["not to take the certificate in --connect-cert"]);
        said(
            with(&cert, &strange_key),
            &["is not the key of the certificate", "stranger.key", "somebody.pem"],
        );
        said(with(&missing, &key), &["--connect-cert", "missing.pem", "No such file"]);
        said(with(&cert, &missing), &["--connect-key", "missing.pem", "No such file"]);
        said(with(&key, &key), &["--connect-cert", "no certificate in it"]);
        said(with(&cert, &cert), &["--connect-key", "no private key in it"]);
    }
    for alone in [["--connect-cert", &cert], ["--connect-key", &key]] {
        let output = ask(&alone);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let other = if alone[0] == "--connect-cert" { "--connect-key" } else { "--connect-cert" };
        assert!(output.stderr.join("\n").contains(other), "{output:?}");
    }
    let plain = ["states", "--connect", "http://127.0.0.1:1", "--connect-cert", &cert, "--connect-key", &key];
    let output = Tcptide::find().unwrap().run(plain).unwrap();
    assert!(output.stderr.join("\n").contains("no https:// address"), "{output:?}");
    agent.interrupt().unwrap();
}

#[test]
fn only_who_has_a_good_certificate_and_the_right_password_is_answered() {
    let pki = Pki::new();
    pki.authority("ca");
    pki.authority("other");
    pki.issue("server", "DNS:localhost", "ca");
    for (name, names, by) in [
        ("dns", "DNS:scraper.example", "ca"),
        ("ip", "IP:192.0.2.7", "ca"),
        ("mail", "email:ops@example.org", "ca"),
        ("uri", "URI:spiffe://example.org/scraper", "ca"),
        ("unnamed", "DNS:somebody.example", "ca"),
        ("stranger", "DNS:scraper.example", "other"),
    ] {
        pki.issue(name, names, by);
    }
    let config = pki.write(
        "web.yml",
        &format!(
            "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n  client_ca_file: ca.pem\n\
             \x20 client_auth_type: RequireAndVerifyClientCert\n  min_version: TLS13\n\
             \x20 client_allowed_sans: [scraper.example, 192.0.2.7, ops@example.org, 'spiffe://example.org/scraper']\n\
             http_server_config:\n  headers:\n    X-Frame-Options: deny\n\
             basic_auth_users:\n  alice: {ONE}\n  bob: {TWO}\n"
        ),
    );
    let (agent, at) = agent_with(&config);
    assert!(agent.stderr().join("\n").contains("serving https://"), "{:?}", agent.stderr());
    for who in ["dns", "ip", "mail", "uri"] {
        let answer = pki.curl(at, "ca", Some(who), &["--http2", "-u", "alice:one"]).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{who}: {answer}");
        assert!(answer.contains("x-frame-options: deny\r\n") && answer.contains("tcptide_build_info"));
    }
    for who in [None, Some("unnamed"), Some("stranger")] {
        let answer = pki.curl(at, "ca", who, &["-u", "alice:one"]);
        assert!(
            answer.is_err_and(|error| error.contains("alert")),
            "{who:?} was let in, or failed otherwise"
        );
    }
    let old = pki.curl(at, "ca", Some("dns"), &["-u", "alice:one", "--tls-max", "1.2"]).unwrap_err();
    assert!(old.contains("version"), "{old}");
    let mut plain = TcpStream::connect(at).unwrap();
    plain.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(!answer(plain).contains("HTTP"), "no word of HTTP without TLS");
    for who in [&["-u", "alice:two"] as &[&str], &["-u", "bob:one"], &["-u", "carol:one"], &["-u", ":"], &[]]
    {
        let answer = pki.curl(at, "ca", Some("dns"), who).unwrap();
        assert!(answer.starts_with("HTTP/1.1 401 "), "{who:?}: {answer}");
        assert!(
            answer.contains("www-authenticate: Basic realm=") && answer.contains("x-frame-options: deny")
        );
        assert!(!answer.contains("tcptide_build_info"));
    }
    let metrics = pki.curl(at, "ca", Some("dns"), &["-u", "bob:two"]).unwrap();
    for (reason, n) in [("tls", 5.0), ("unauthorized", 5.0)] {
        let series = format!("tcptide_http_rejected_total{{reason=\"{reason}\"}}");
        assert_eq!(number(&metrics, &series), Some(n), "{reason}");
    }
    assert_eq!(number(&metrics, "tcptide_web_config_last_reload_successful"), Some(1.0));
    assert!(agent.interrupt().unwrap().status.success());
}

#[test]
fn what_changes_while_it_serves_holds_for_the_next_who_asks() {
    let pki = Pki::new();
    for by in ["ca", "new"] {
        pki.authority(by);
        pki.issue(&format!("of-{by}"), "DNS:localhost", by);
    }
    let with = |cert: &str, more: &str| {
        format!("tls_server_config:\n  cert_file: {cert}.pem\n  key_file: {cert}.key\n{more}")
    };
    let alice = format!("basic_auth_users:\n  alice: {ONE}\n");
    let config = pki.write("web.yml", &with("current", &alice));
    let rotate = |to: &str| {
        for end in ["key", "pem"] {
            let text = fs::read_to_string(pki.path(&format!("of-{to}.{end}"))).unwrap();
            pki.write(&format!("current.{end}"), &text);
        }
    };
    rotate("ca");
    let (agent, at) = agent_with(&config);
    let ask = |trusted: &str, who: Option<&str>, user: &str| pki.curl(at, trusted, who, &["-u", user]);
    let is_ok = |answer: Result<String, String>| {
        assert!(answer.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")), "{answer:?}");
        answer.unwrap()
    };
    is_ok(ask("ca", None, "alice:one"));
    rotate("new");
    is_ok(ask("new", None, "alice:one"));
    assert!(ask("ca", None, "alice:one").unwrap_err().contains("certificate"));

    // What clients have to show.
    let type_of = |name: &str| {
        let needs_ca = if name.contains("Verify") { "  client_ca_file: ca.pem\n" } else { "" };
        pki.write("web.yml", &with("current", &format!("  client_auth_type: {name}\n{needs_ca}{alice}")));
    };
    for (name, nobody, stranger) in [
        ("RequestClientCert", true, true),
        ("RequireAnyClientCert", false, true),
        ("VerifyClientCertIfGiven", true, false),
        ("RequireAndVerifyClientCert", false, false),
        ("NoClientCert", true, true),
    ] {
        type_of(name);
        is_ok(ask("new", Some("of-ca"), "alice:one"));
        assert_eq!(ask("new", None, "alice:one").is_ok(), nobody, "{name}");
        assert_eq!(ask("new", Some("of-new"), "alice:one").is_ok(), stranger, "{name}");
    }
    // What is no good, or would let anybody in, is not taken, and said once.
    let good = "tcptide_web_config_last_reload_successful";
    for (text, word) in [
        ("basic_auth_users: [", "line 1"),
        ("", "tls_server_config"),
        (&with("current", ""), "basic_auth_users"),
        (&with("missing", &alice), "missing.pem"),
        (&with("web", &alice), "cert_file"),
    ] {
        let before = agent.stderr().len();
        pki.write("web.yml", text);
        for _ in 0..3 {
            assert_eq!(number(&is_ok(ask("new", None, "alice:one")), good), Some(0.0), "{text}");
        }
        assert!(ask("new", None, "alice:two").unwrap().starts_with("HTTP/1.1 401 "));
        let said = agent.stderr()[before..].join("\n");
        assert!(said.contains(word) && said.matches("stays as it was").count() == 1, "{text}: {said}");
    }
    fs::remove_file(&config).unwrap();
    is_ok(ask("new", None, "alice:one"));
    pki.write("web.yml", &with("current", &format!("basic_auth_users:\n  alice: {TWO}\n")));
    assert_eq!(number(&is_ok(ask("new", None, "alice:two")), good), Some(1.0));
    assert!(ask("new", None, "alice:one").unwrap().starts_with("HTTP/1.1 401 "));
    agent.interrupt().unwrap();
}

#[test]
fn a_web_configuration_that_is_no_good_ends_the_start() {
    let pki = Pki::new();
    pki.authority("ca");
    pki.issue("a", "DNS:localhost", "ca");
    pki.issue("b", "DNS:localhost", "ca");
    let tls = |more: &str| format!("tls_server_config:\n  cert_file: a.pem\n  key_file: a.key\n{more}");
    for (text, words) in [
        ("tls_server_config:\n  cert: x\n  cert_file: a.pem\n".to_owned(), "cert and cert_file"),
        ("tls_server_config:\n  key_file: a.key\n".to_owned(), "cert_file: missing"),
        ("tls_server_config:\n  cert_file: a.pem\n  key_file: no.key\n".to_owned(), "no.key"),
        ("tls_server_config:\n  cert_file: a.pem\n  key_file: b.key\n".to_owned(), "no pair"),
        ("tls_server_config:\n  cert_file: a.key\n  key_file: a.key\n".to_owned(), "no certificate"),
        ("tls_server_config:\n  cert_file: a.pem\n  key_file: a.pem\n".to_owned(), "no private key"),
        (tls("  client_auth_type: RequireAndVerifyClientCert\n"), "client_ca_file: missing"),
        (tls("  client_ca_file: ca.pem\n"), "client_auth_type: missing"),
        (tls("  min_version: TLS11\n"), "min_version: TLS11"),
        (tls("  min_version: TLS13\n  max_version: TLS12\n"), "max_version"),
        (tls("  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]\n"), "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
        (tls("  curve_preferences: [CurveP521]\n"), "CurveP521"),
        (tls("  client_authtype: NoClientCert\n"), "client_authtype"),
        ("basic_auth_users:\n  alice: one\n".to_owned(), "basic_auth_users.alice"),
        ("http_server_config:\n  headers:\n    Server: x\n".to_owned(), "http_server_config.headers.Server"),
    ] {
        let config = pki.write("web.yml", &text);
        let ran = Tcptide::find().unwrap();
        let ran =
            ran.run(["agent", "--web.listen-address", "127.0.0.1:0", "--web.config.file", &config]).unwrap();
        let stderr = ran.stderr.join("\n");
        assert_eq!(ran.status.code(), Some(1), "{text}: {stderr}");
        assert!(stderr.contains(words) && stderr.contains("web.yml"), "{text}: {stderr}");
        assert_eq!(ran.stderr.len(), 1, "{stderr}");
    }
    // Inline, and with what may be left out.
    let text = |name: &str| fs::read_to_string(pki.path(name)).unwrap().replace('\n', "\n    ");
    let (cert, key) = (text("a.pem"), text("a.key"));
    let inline = format!(
        "tls_server_config:\n  cert: |\n    {cert}\n  key: |\n    {key}\n  max_version: TLS12\n\
         \x20 cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]\n  curve_preferences: [CurveP384]\n"
    );
    let (agent, at) = agent_with(&pki.write("web.yml", &inline));
    assert!(pki.curl(at, "ca", None, &["--curves", "P-384:P-256"]).unwrap().starts_with("HTTP/1.1 200 "));
    for more in
        [["--curves", "X25519:P-256"], ["--ciphers", "ECDHE-ECDSA-AES128-GCM-SHA256"], ["--tlsv1.3", "-s"]]
    {
        assert!(pki.curl(at, "ca", None, &more).is_err(), "{more:?}");
    }
    agent.interrupt().unwrap();
}
