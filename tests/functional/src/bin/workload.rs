//! TCP clients and a server that count. At its end each command prints one JSON object of what it
//! did; before, on stderr, `ready: …` once it listens or holds its connections.
//!
//! Every command is bounded in time and ends by itself, or at SIGTERM or SIGINT, with its counts.

use std::io::{self, Read as _, Write as _, stdin};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use functional::workload::{
    Churn, Client, Counts, Held, PingPong, Running, SMALLEST_FRAME, ServeOptions, Server, Stream, churn,
    connections_per_process, pass, ping_pong, speak, stream,
};
use rustix::net::sockopt::{set_socket_reuseaddr, set_socket_reuseport};
use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Source addresses `hold` uses on loopback, one for so many connections: an address has about
/// 28,000 ephemeral ports to one server.
const PER_SOURCE: u64 = 12_500;

#[derive(Parser)]
#[command(about = "TCP clients and a server that count what they do", version)]
struct Cli {
    #[command(subcommand)]
    command: Workload,
}

#[derive(Subcommand)]
enum Workload {
    /// Accept connections and answer requests.
    Serve(Serve),
    /// Connect, request, response, close; many times.
    Churn(ChurnArgs),
    /// Open connections and keep them until stdin closes.
    Hold(Hold),
    /// Small requests over one connection.
    Pingpong(PingPongArgs),
    /// One large request.
    Stream(StreamArgs),
    /// A request of so many bytes for each line of stdin, without answers, until stdin closes.
    Speak(Target),
    /// Connect, pass the connection to another process, and end.
    Pass(Pass),
    /// Ask a DNS server for the addresses of a name.
    Lookup(Lookup),
}

#[derive(Args)]
struct Lookup {
    /// The server.
    #[arg(long)]
    server: SocketAddr,
    /// The name.
    #[arg(long)]
    name: String,
    /// Over TCP.
    #[arg(long)]
    tcp: bool,
}

#[derive(Args)]
struct Serve {
    /// Where to listen; port 0 takes any.
    #[arg(long, required_unless_present = "inherited")]
    listen: Option<SocketAddr>,
    /// Serve on the listener that stdin is.
    #[arg(long, conflicts_with_all = ["listen", "processes"])]
    inherited: bool,
    /// Length of each answer in bytes; 0 for none [default: as long as the request].
    #[arg(long)]
    bytes_back: Option<u64>,
    /// End after so many connections.
    #[arg(long)]
    count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, default_value_t = 300.0)]
    seconds: f64,
    /// Serve with so many processes that share the port.
    #[arg(long, default_value_t = 1, conflicts_with = "count")]
    processes: u32,
    /// Share the port with other processes.
    #[arg(long)]
    reuse_port: bool,
    /// Limit of the accept queue.
    #[arg(long, default_value_t = 4096)]
    backlog: i32,
}

#[derive(Args)]
struct Target {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// Source addresses to use in turn.
    #[arg(long, value_delimiter = ',')]
    from: Vec<IpAddr>,
    /// Seconds that a connect, read or write may take.
    #[arg(long, default_value_t = 5.0)]
    timeout: f64,
    /// Close with a reset.
    #[arg(long)]
    reset: bool,
    /// Bytes of the send buffer (`SO_SNDBUF`).
    #[arg(long)]
    send_buffer: Option<usize>,
}

#[derive(Args)]
struct ChurnArgs {
    #[command(flatten)]
    target: Target,
    /// Connections per second.
    #[arg(long)]
    rate: f64,
    /// Start no connection after so many seconds.
    #[arg(long)]
    seconds: f64,
    /// Start no more than so many connections.
    #[arg(long)]
    count: Option<u64>,
    /// Length of a request.
    #[arg(long, default_value_t = 64)]
    bytes: u64,
    /// Threads that connect.
    #[arg(long, default_value_t = 1)]
    threads: u32,
}

#[derive(Args)]
struct Hold {
    #[command(flatten)]
    target: Target,
    /// Connections; more than one process may open are spread over several.
    #[arg(long)]
    count: u64,
    /// Requests per second, on the connections in turn.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Let go after so many seconds.
    #[arg(long, default_value_t = 300.0)]
    seconds: f64,
}

#[derive(Args)]
struct PingPongArgs {
    #[command(flatten)]
    target: Target,
    /// Requests.
    #[arg(long, default_value_t = 100)]
    count: u64,
    /// Length of a request.
    #[arg(long, default_value_t = 64)]
    bytes: u64,
    /// Milliseconds between an answer and the next request.
    #[arg(long, default_value_t = 0.0)]
    interval: f64,
    /// End after so many seconds.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
}

#[derive(Args)]
struct StreamArgs {
    #[command(flatten)]
    target: Target,
    /// Length of the request.
    #[arg(long)]
    bytes: u64,
    /// Bytes per second to send at.
    #[arg(long)]
    rate: Option<u64>,
    /// Do not wait for an answer (for a server with `--bytes-back 0`).
    #[arg(long)]
    no_answer: bool,
}

#[derive(Args)]
struct Pass {
    #[command(flatten)]
    target: Target,
    /// The Unix socket of who takes it.
    #[arg(long)]
    by: PathBuf,
}

impl Target {
    fn client(&self) -> Client {
        Client {
            to: self.to,
            from: self.from.clone(),
            timeout: Duration::from_secs_f64(self.timeout),
            reset: self.reset,
            send_buffer: self.send_buffer,
        }
    }
}

fn main() -> ExitCode {
    match measured(Cli::parse().command).and_then(|counts| Ok(serde_json::to_string(&counts)?)) {
        Ok(counts) => {
            println!("{counts}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("workload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs it, and adds the CPU time that it took. Children have told theirs.
fn measured(workload: Workload) -> Result<Counts> {
    let cpu = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
    };
    let before = cpu();
    let mut counts = run(workload)?;
    counts.cpu_seconds += cpu() - before;
    Ok(counts)
}

fn run(workload: Workload) -> Result<Counts> {
    match workload {
        Workload::Serve(args) if args.processes > 1 => serve_with_several(&args),
        Workload::Serve(args) => serve(&args),
        Workload::Churn(args) => Ok(run_churn(&args)),
        Workload::Hold(args) if args.count > connections_per_process() => hold_with_several(&args),
        Workload::Hold(args) => hold(&args),
        Workload::Pingpong(args) => Ok(ping_pong(
            &args.target.client(),
            &PingPong {
                count: args.count,
                bytes: args.bytes,
                interval: Duration::from_secs_f64(args.interval / 1e3),
                limit: Duration::from_secs_f64(args.seconds),
            },
        )),
        Workload::Stream(args) => Ok(stream(
            &args.target.client(),
            &Stream { bytes: args.bytes, rate: args.rate, answer: !args.no_answer },
        )),
        Workload::Speak(target) => {
            let lengths = stdin().lines().map(|line| line?.parse().map_err(io::Error::other));
            Ok(speak(&target.client(), lengths))
        }
        Workload::Lookup(args) => {
            let bytes_received = functional::dns::lookup(args.server, &args.name, args.tcp)?;
            Ok(Counts { requests: 1, bytes_received, ..Counts::default() })
        }
        Workload::Pass(args) => pass(&args.target.client(), &args.by),
    }
}

fn serve(args: &Serve) -> Result<Counts> {
    let options = ServeOptions {
        bytes_back: args.bytes_back.map(|bytes| if bytes == 0 { 0 } else { bytes.max(SMALLEST_FRAME) }),
        count: args.count,
        limit: Duration::from_secs_f64(args.seconds),
        reuse_port: args.reuse_port,
        backlog: args.backlog,
    };
    let server = match args.listen {
        Some(address) => Server::start(address, options)?,
        None => Server::on(inherited()?, options)?,
    };
    for signal in [SIGTERM, SIGINT] {
        let stopper = server.stopper().context("duplicating the stop descriptor")?;
        signal_hook::low_level::pipe::register(signal, stopper).context("handling signals")?;
    }
    eprintln!("ready: listening on {}", server.address());
    server.wait()
}

fn inherited() -> Result<TcpListener> {
    Ok(stdin().as_fd().try_clone_to_owned().context("taking over the listener")?.into())
}

/// Serves with children that share a port, for more connections than one process may hold.
fn serve_with_several(args: &Serve) -> Result<Counts> {
    // Bound but not listening, this socket keeps the port without ever getting a connection.
    let listen = args.listen.context("nowhere to listen")?;
    let family = if listen.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let keeper = socket(family, SocketType::STREAM, None).context("making a socket")?;
    set_socket_reuseaddr(&keeper, true)?;
    set_socket_reuseport(&keeper, true)?;
    bind(&keeper, &listen).with_context(|| format!("binding {listen}"))?;
    let address = SocketAddr::try_from(getsockname(&keeper)?)?;

    let children = (0..args.processes).map(|_| {
        let mut child = own_command("serve")?;
        child.args(["--reuse-port", "--listen", &address.to_string()]);
        child.args(["--seconds", &args.seconds.to_string(), "--backlog", &args.backlog.to_string()]);
        if let Some(bytes) = args.bytes_back {
            child.args(["--bytes-back", &bytes.to_string()]);
        }
        Running::start(&mut child)
    });
    let children = children.collect::<Result<Vec<_>>>()?;
    for child in &children {
        child.ready(Duration::from_secs(10))?;
    }
    eprintln!("ready: listening on {address}");
    let (told, _to) = told_by_signal()?;
    wait_for(&told, Duration::from_secs_f64(args.seconds))?;
    finish_all(children)
}

fn run_churn(args: &ChurnArgs) -> Counts {
    let plan = Churn {
        rate: args.rate,
        limit: Duration::from_secs_f64(args.seconds),
        count: args.count,
        bytes: args.bytes,
        threads: args.threads,
    };
    churn(&args.target.client(), &plan)
}

fn hold(args: &Hold) -> Result<Counts> {
    let start = Instant::now();
    let limit = Duration::from_secs_f64(args.seconds);
    let told = told_to_end()?;
    let mut held = Held::open(&args.target.client(), args.count, limit)?;
    eprintln!("ready: holding {} connections", held.counts().opened);
    let pause = if args.rate > 0 { Duration::from_secs(1) } else { limit };
    let mut next = start.elapsed();
    while next < limit {
        held.speak(args.rate);
        next = limit.min(next + pause);
        if wait_for(&told, next.saturating_sub(start.elapsed()))? {
            break;
        }
    }
    Ok(held.close())
}

/// Holds with children, each with source addresses of its own when the server is on loopback.
fn hold_with_several(args: &Hold) -> Result<Counts> {
    let start = Instant::now();
    let told = told_to_end()?;
    let processes = args.count.div_ceil(connections_per_process());
    let children = (0..processes).map(|number| {
        let share = |all: u64| all / processes + u64::from(number < all % processes);
        let count = share(args.count);
        let mut child = own_command("hold")?;
        child.args(["--to", &args.target.to.to_string(), "--count", &count.to_string()]);
        child.args(["--seconds", &args.seconds.to_string(), "--timeout", &args.target.timeout.to_string()]);
        child.args(["--rate", &share(args.rate).to_string()]);
        if args.target.reset {
            child.arg("--reset");
        }
        let from = sources(args, number, count);
        if !from.is_empty() {
            child.args(["--from", &from.join(",")]);
        }
        Running::start(&mut child)
    });
    let children = children.collect::<Result<Vec<_>>>()?;
    let limit = Duration::from_secs_f64(args.seconds);
    let mut held = 0;
    for child in &children {
        let line = child.ready(limit)?;
        held += line.split(' ').nth(1).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
    }
    eprintln!("ready: holding {held} connections");
    wait_for(&told, limit.saturating_sub(start.elapsed()))?;
    finish_all(children)
}

/// The source addresses of one of several processes that hold connections.
fn sources(args: &Hold, process: u64, share: u64) -> Vec<String> {
    if !args.target.from.is_empty() {
        return args.target.from.iter().map(ToString::to_string).collect();
    }
    let on_loopback = args.target.to.is_ipv4() && args.target.to.ip().is_loopback();
    if !on_loopback {
        return Vec::new();
    }
    let octet = |number: u64| u8::try_from(number % 250 + 1).unwrap_or(1);
    (0..share.div_ceil(PER_SOURCE))
        .map(|source| Ipv4Addr::new(127, 99, octet(process), octet(source)).to_string())
        .collect()
}

fn own_command(subcommand: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("asking for the own path")?);
    command.arg(subcommand);
    Ok(command)
}

fn finish_all(children: Vec<Running>) -> Result<Counts> {
    let mut counts = Counts::default();
    for child in children {
        counts.add(&child.finish()?);
    }
    Ok(counts)
}

/// The first end is written to when somebody ends it: at SIGTERM and SIGINT, and by who has the second.
fn told_by_signal() -> Result<(UnixStream, UnixStream)> {
    let (told, to) = UnixStream::pair().context("making a pipe")?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, to.try_clone()?).context("handling signals")?;
    }
    Ok((told, to))
}

/// The same, and when stdin closes.
fn told_to_end() -> Result<UnixStream> {
    let (told, mut by_stdin) = told_by_signal()?;
    thread::spawn(move || {
        let _ = stdin().read_to_end(&mut Vec::new());
        let _ = by_stdin.write_all(&[0]);
    });
    Ok(told)
}

/// Sleeps, so that a thousand of these cost nothing, until then or until somebody ends it. Returns whether somebody has.
fn wait_for(mut told: &UnixStream, limit: Duration) -> Result<bool> {
    told.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
    Ok(told.read(&mut [0]).is_ok())
}
