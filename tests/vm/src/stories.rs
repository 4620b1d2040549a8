//! Which stories are told on which kernel, and which are left out, and why.

use anyhow::{Result, bail};

use crate::kernels::Kernel;
use crate::plan::{Boot, Plan, Story};
use crate::programs::{Programs, tests_in};

/// Linux that has what tcptide is built on (see `Kernel::look` in `crates/probe`).
const SUPPORTED: (u64, u64) = (5, 11);
/// From here on a task can be preempted in the middle of a program.
const PREEMPTIBLE: (u64, u64) = (7, 0);

/// Functional tests in one guest: so few that no guest is left alone at the end.
const AT_MOST: usize = 30;

/// Files of functional tests about what differs between kernels: told on each. The stories of the others go round, each
/// on one kernel, unless all are asked for.
const ON_EACH: &[&str] = &["capabilities", "effort", "rtt", "variants"];
/// Files about what tcptide makes of what the kernel told, which is the same everywhere: only if all are asked for.
const NOT_ROUND: &[&str] =
    &["agent", "api", "bad_places", "edges", "explain", "exposition", "filters", "remote", "top", "web"];

/// What is left out: a file of the functional tests, one of its tests or `*`, and why.
const LEFT_OUT: &[(&str, &str, &str)] = &[
    ("api", "the_document_is_what_the_server_does", NO_PYTHON),
    ("cri", "*", "no containerd in a guest"),
    ("exposition", "a_budget_is_kept_and_nothing_is_lost", NO_PROMETHEUS),
    ("exposition", "native_and_classic_histograms_and_exemplars_are_what_was_counted", NO_PROMETHEUS),
    ("exposition", "series_of_what_is_gone_end_at_once", NO_PROMETHEUS),
    ("web", "a_web_configuration_that_is_no_good_ends_the_start", NO_OPENSSL),
    ("web", "only_who_has_a_good_certificate_and_the_right_password_is_answered", NO_OPENSSL),
    ("web", "who_asks_with_connect_shows_a_certificate", NO_OPENSSL),
    ("web", "what_changes_while_it_serves_holds_for_the_next_who_asks", NO_OPENSSL),
    ("docker", "*", NO_DOCKER),
    ("agent", "a_removed_containers_series_stay_for_the_grace_period", NO_DOCKER),
    ("podman", "*", "no Podman in a guest"),
    ("capture", "*", "no tshark in a guest"),
    ("agent", "a_reader_gets_the_format_it_asks_for", NO_PROMETHEUS),
    ("agent", "prometheus_scrapes_it", NO_PROMETHEUS),
    ("names", "docker_s_own_server_is_heard_behind_its_translation", NO_DOCKER),
    ("edges", "edges_are_what_the_containers_counted", NO_PROMETHEUS),
    ("machines", "*", "no LXC and no systemd-nspawn in a guest"),
    ("runtimes", "no_name_breaks_the_text", NO_PROMETHEUS),
    ("mixin", "*", NO_PROMETHEUS),
    ("page", "*", "no browser in a guest"),
    ("reliability", "*", "takes minutes: `make reliability`"),
    (
        "runtimes",
        "a_runtime_that_never_answers_costs_names_and_nothing_else",
        "asks for 5,000 connections a second",
    ),
    ("namespaces", "a_receive_buffer_has_no_room", NO_PYTHON),
    ("namespaces", "cookies_are_sent_received_and_refused", NO_PYTHON),
    ("namespaces", "data_comes_with_the_syn", NO_PYTHON),
    ("namespaces", "mptcp_is_asked_for_and_not_had", NO_PYTHON),
    ("namespaces", "signatures_are_missing_unexpected_and_wrong", NO_PYTHON),
    ("reconcile", "signatures_are_not_expected", NO_PYTHON),
    ("far_ends", "a_map_keeps_no_connection_that_ended", "asks for 2,000 connections a second"),
    ("far_ends", "numbers_hold_while_they_move", "asks for two processors at once"),
    ("far_ends", "the_far_end_is_named_through_translated_addresses", "no iptables in a guest"),
    ("helpers", "*", "about the tests' own helpers"),
    ("packaging", "*", NOT_THE_KERNEL),
    ("service", "*", NOT_THE_KERNEL),
    ("settings", "*", NOT_THE_KERNEL),
    ("bad_places", "a_reader_that_leaves_is_no_error", NOT_THE_KERNEL),
    ("bad_places", "colours_are_for_terminals_that_want_them", NOT_THE_KERNEL),
    ("bad_places", "every_command_fits_a_terminal_of_40_columns", NOT_THE_KERNEL),
    ("bad_places", "head_gets_its_line", NOT_THE_KERNEL),
    ("bad_places", "help_comes_at_once", NOT_THE_KERNEL),
    ("bad_places", "wrong_usage_is_status_2_and_says_what_would_be_right", NOT_THE_KERNEL),
    ("filters", "a_reader_that_leaves_is_no_error", NOT_THE_KERNEL),
    (
        "filters",
        "what_nobody_asked_for_takes_no_room",
        "asserts that no event is missed, which from 7.0 on a few are",
    ),
    (
        "agent",
        "counters_are_the_workloads_own_and_the_kernels",
        "asks for 200 connections in 20 s over a path with losses",
    ),
    (
        "churn",
        "every_one_of_50_000_connections_is_told_of_to_the_byte",
        "asks for 2,000 connections a second",
    ),
    ("churn", "what_does_not_fit_is_counted_exactly", "asks for 3,000 connections in a second"),
    ("churn", "what_interrupts_a_program_at_its_work_is_told_too", "asks for a rate; `rps` tells it without"),
    ("explain", "a_small_send_buffer_is_told", SLOW),
    (
        "backlog",
        "without_cookies_a_flood_turns_everybody_away",
        "supposes an answer within the second after which a SYN comes again",
    ),
    ("stalls", "a_small_send_buffer_keeps_its_own_sender_waiting", SLOW),
    (
        "failures",
        "a_short_connection_that_worked_is_no_failure",
        "supposes that loopback answers before `connect` returns",
    ),
    (
        "reconcile",
        "traffic_that_was_there_before_and_goes_on_after",
        "asks for a rate that lasts as long as the comparison",
    ),
    ("rtt", "a_path_of_20_ms_each_way_is_a_round_trip_of_40_ms", "asserts on milliseconds"),
    (
        "rtt",
        "live_connections_are_shown_every_interval_and_nothing_is_counted_twice",
        "asks for 250 round trips in 5 s",
    ),
];
const SLOW: &str = "asks for a processor that fills a buffer faster than the path empties it";
const NO_DOCKER: &str = "no Docker in a guest";
const NO_PYTHON: &str = "no Python in a guest";
const NO_OPENSSL: &str = "no openssl and no curl in a guest";
const NO_PROMETHEUS: &str = "no Prometheus in a guest";
const NOT_THE_KERNEL: &str = "not about the kernel";

/// The functional tests that a guest can tell, and those that are left out.
#[derive(Debug)]
pub(crate) struct Functional {
    told: Vec<Story>,
    /// What, and why.
    pub left_out: Vec<(String, &'static str)>,
}

impl Functional {
    /// Those for the kernel with this number, of so many.
    fn of(&self, kernel: usize, kernels: usize, all: bool) -> impl Iterator<Item = &Story> {
        let mut turn = 0;
        self.told.iter().filter(move |story| {
            let Story::Functional { file, .. } = story else { return false };
            let among = |files: &[&str]| files.contains(&file.as_str());
            if all || among(ON_EACH) {
                return true;
            }
            if among(NOT_ROUND) {
                return false;
            }
            turn += 1;
            turn % kernels == kernel
        })
    }

    /// Asks the executables. An entry of [`LEFT_OUT`] that names no test is an error: it may have been renamed.
    pub(crate) fn list(programs: &Programs) -> Result<Self> {
        let mut all = Vec::new();
        for (file, executable) in &programs.tests {
            let tests = tests_in(executable)?.into_iter();
            all.extend(tests.map(|test| Story::Functional { file: file.clone(), test }));
        }
        let mut left_out = Vec::new();
        for &(file, test, why) in LEFT_OUT {
            let before = all.len();
            all.retain(|story| !is(story, file, test));
            match before - all.len() {
                0 => bail!("the test {test} in {file}.rs, which is to be left out, does not exist"),
                count if test == "*" => left_out.push((format!("{file}: all {count}"), why)),
                _ => {
                    let story = Story::Functional { file: file.to_owned(), test: test.to_owned() };
                    left_out.push((story.to_string(), why));
                }
            }
        }
        Ok(Self { told: all, left_out })
    }
}

fn is(story: &Story, in_file: &str, name: &str) -> bool {
    matches!(story, Story::Functional { file, test } if file == in_file && ["*", test].contains(&name))
}

/// Which stories are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Every functional test on every kernel.
    pub all: bool,
    /// What is written down of every kernel.
    pub document: bool,
    /// Only those that have this in their names; then on every kernel, too.
    pub only: &'a str,
}

/// What the guests of each kernel have to do, one plan each.
pub(crate) fn plans(kernels: &[Kernel], functional: &Functional, wanted: Wanted<'_>) -> Vec<Vec<Plan>> {
    let is_old = |kernel: &Kernel| kernel.number() < SUPPORTED;
    let old = kernels.iter().filter(|kernel| is_old(kernel)).count();
    let plans = kernels.iter().enumerate().map(|(at, kernel)| {
        if is_old(kernel) {
            return wanted.of(&[(Boot::Usual, vec![Story::TooOld])]);
        }
        let preemptible = kernel.number() >= PREEMPTIBLE;
        let all = wanted.all || !wanted.only.is_empty();
        // Lockdown cannot be lifted again: it comes last.
        let own =
            vec![Story::Doctor, Story::Commands, Story::NoBtf, Story::Rps { preemptible }, Story::Lockdown];
        let mut counted = vec![Story::Cost];
        // It takes minutes, and differs little between kernels.
        if all || wanted.document || at + 1 == kernels.len() {
            counted.push(Story::Overhead);
        }
        // They take as long as all else together to start in a guest: only if they are asked for.
        if !wanted.only.is_empty() {
            counted.push(Story::Peers);
        }
        let mut plans = vec![
            (Boot::Usual, own),
            (Boot::Counted, counted),
            (Boot::CgroupV1, vec![Story::Doctor, Story::CgroupV1]),
        ];
        let told: Vec<_> = functional.of(at - old, kernels.len() - old, all).cloned().collect();
        let guests = told.len().div_ceil(AT_MOST);
        // In turn, as those of one file take about as long.
        let part = |guest| told.iter().skip(guest).step_by(guests).cloned().collect();
        plans.extend((0..guests).map(|guest| (Boot::Usual, part(guest))));
        wanted.of(&plans)
    });
    plans.collect()
}

impl Wanted<'_> {
    fn of(self, all: &[(Boot, Vec<Story>)]) -> Vec<Plan> {
        let stories = |stories: &[Story]| -> Vec<Story> {
            stories.iter().filter(|story| story.to_string().contains(self.only)).cloned().collect()
        };
        let plans = all.iter().map(|(boot, all)| Plan { boot: *boot, stories: stories(all) });
        plans.filter(|plan| !plan.stories.is_empty()).collect()
    }
}
