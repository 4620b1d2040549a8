//! A real Prometheus that scrapes one target, and `promtool`'s opinion of a metrics page.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::http;
use crate::process::{Daemon, output, output_with_input, require, wait_until};
use crate::sweep::own_name;
use crate::tcptide::free_port;

/// The job's name in the scrape configuration: the one that the rules in `packaging/prometheus` expect.
pub const JOB: &str = "tcptide";

/// A running Prometheus. Ended on `Drop`.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    // In this order: the daemon ends before its folder goes.
    daemon: Daemon,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts Prometheus on loopback, scraping `http://target/metrics` every second, and waits
    /// until it is ready.
    pub fn scraping(target: SocketAddr) -> Result<Self> {
        Self::start(target, &[], &[])
    }

    /// As [`scraping`](Self::scraping), with more command line arguments.
    pub fn with(target: SocketAddr, args: &[&str]) -> Result<Self> {
        Self::start(target, &[], args)
    }

    /// As [`scraping`](Self::scraping), with files of rules, which are evaluated every second.
    pub fn with_rules(target: SocketAddr, rules: &[&Path]) -> Result<Self> {
        Self::start(target, rules, &[])
    }

    fn start(target: SocketAddr, rules: &[&Path], args: &[&str]) -> Result<Self> {
        let program = require("prometheus", "prometheus")?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("{}-", own_name("prometheus")))
            .tempdir()
            .context("making a folder for Prometheus")?;
        let path = folder.path();
        let configuration = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: {rules:?}\n\
             scrape_configs: [{{job_name: {JOB}, honor_labels: true, static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        fs::write(path.join("prometheus.yml"), configuration)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", path.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", path.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(args);
        let mut daemon = Daemon::start(&mut command, &path.join("prometheus.log"))?;
        daemon.wait_ready(Duration::from_secs(30), || {
            http::get(address, "/-/ready").is_ok_and(|answer| answer.status == 200)
        })?;
        Ok(Self { address, daemon, _folder: folder })
    }

    /// Where its API is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// An instant query's result: a list of `{metric, value: [time, "number"]}`.
    pub fn query(&self, promql: &str) -> Result<Vec<Value>> {
        let body = http::get(self.address, &format!("/api/v1/query?query={}", http::encode(promql)))?;
        let answer: Value = serde_json::from_str(&body.body).context("reading Prometheus's answer")?;
        match answer.pointer("/data/result").and_then(Value::as_array) {
            Some(result) => Ok(result.clone()),
            None => bail!("Prometheus refuses `{promql}`: {answer}"),
        }
    }

    /// The one number that a query results in; `None` if it results in nothing.
    pub fn number(&self, promql: &str) -> Result<Option<f64>> {
        let result = self.query(promql)?;
        if result.len() > 1 {
            bail!("`{promql}` results in {} series, not one", result.len());
        }
        let number = |series: &Value| series.pointer("/value/1")?.as_str()?.parse().ok();
        Ok(result.first().and_then(number))
    }

    /// A path of its API that answers with JSON.
    pub fn json(&self, path: &str) -> Result<Value> {
        let body = http::get(self.address, path)?.ok()?;
        serde_json::from_str(&body).context("reading Prometheus's answer")
    }

    /// Waits until the target has been scraped well once.
    pub fn wait_scraped(&self) -> Result<()> {
        wait_until("Prometheus to scrape the target", Duration::from_secs(20), || {
            let up = self.number(&format!("up{{job=\"{JOB}\"}}"))?;
            Ok((up == Some(1.0)).then_some(()))
        })
    }
}

/// Fails with what `promtool` says to these arguments, run in this folder.
pub fn promtool(folder: &Path, args: &[&str]) -> Result<String> {
    let program = require("promtool", "prometheus")?;
    output(Command::new(program).args(args).current_dir(folder))
}

/// Fails with what `promtool check metrics` says against a metrics page.
pub fn check_metrics(text: &str) -> Result<()> {
    let program = require("promtool", "prometheus")?;
    output_with_input(Command::new(program).args(["check", "metrics"]), text.as_bytes()).map(drop)
}
