//! Lists, watches, and what goes wrong with them, against a server that does it.

use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use model::container::identify;
use model::mountinfo::Mount;
use serde_json::json;

use super::super::{Directory, Options};
use super::fake_api::{Cut, FakeApi, NODES, PODS, SERVICES, SLICES, kubeconfig, node, pod, service, slice};
use super::*;

const QUICK: Timing = Timing {
    request: Duration::from_millis(500),
    retry: Duration::from_millis(20),
    longest_retry: Duration::from_millis(200),
    denied: Duration::from_millis(100),
    nodes: Duration::from_millis(50),
};
/// Longer than anything here may take.
const LONG: Duration = Duration::from_secs(20);
const JOBS_PATH: &str = "/apis/batch/v1/jobs";

struct Watched(Kubernetes);

impl Watched {
    fn start(fake: &FakeApi) -> Self {
        Self::start_with(fake, QUICK)
    }

    fn start_with(fake: &FakeApi, timing: Timing) -> Self {
        let access = Access::find(Some(&fake.kubeconfig()), Some("n1")).unwrap().unwrap();
        let watched = Self(Kubernetes::start(access, timing).unwrap());
        watched.0.settle(LONG);
        watched
    }

    /// Owner, pod and name of a container by its id.
    fn container(&self, id: &str) -> Option<String> {
        let identity = Identity { id: Some(id.to_owned()), ..identify("/x") };
        let told = self.0.complete(&identity, None)?;
        Some(format!("{} {} {}", told.owner.as_ref()?, told.pod.as_ref()?, told.name.as_ref()?))
    }

    fn address(&self, address: &str, port: u16) -> Option<String> {
        self.0.name_of(address.parse().unwrap(), port).map(|name| name.to_string())
    }

    fn until(&self, what: &str, true_yet: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !true_yet(self) {
            assert!(begun.elapsed() < LONG, "{what}: {}", self.0.status());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_connected(&self) -> bool {
        self.0.status().state == KubernetesState::Connected { version: "v1.33.1".into() }
    }

    fn has_failed(&self, text: &str) -> bool {
        matches!(self.0.status().state, KubernetesState::Failed(why) if why.contains(text))
    }

    fn complains(&self, text: &str) -> bool {
        self.0.status().complaints.iter().any(|complaint| complaint.contains(text))
    }
}

/// A server with a pod here, one elsewhere, a service, its endpoints, and both nodes.
fn cluster() -> FakeApi {
    let fake = FakeApi::start();
    fill(&fake);
    fake
}

fn fill(fake: &FakeApi) {
    fake.put(NODES, node("n1", "192.0.2.1"));
    fake.put(NODES, node("n2", "192.0.2.2"));
    fake.put(PODS, pod("shop-a", "n1", "aaa", "10.1.0.5"));
    fake.put(PODS, pod("shop-b", "n2", "bbb", "10.2.0.5"));
    fake.put(SERVICES, service("shop", "10.96.0.7"));
    fake.put(SLICES, slice("shop-1", "10.2.0.5", "shop-b", "n2"));
}

#[test]
fn containers_and_addresses_are_named() {
    let fake = cluster();
    let watched = Watched::start(&fake);
    assert!(watched.is_connected(), "{}", watched.0.status());
    assert_eq!(watched.container("aaa").as_deref(), Some("Deployment/shop shop-a web"));
    assert_eq!(watched.container("bbb"), None, "another node's");
    assert_eq!(watched.address("10.1.0.5", 45_000).as_deref(), Some("prod/shop-a"));
    assert_eq!(watched.address("10.96.0.7", 80).as_deref(), Some("prod/shop"));
    watched.until("the other node's", |watched| {
        watched.address("10.2.0.5", 45_000).as_deref() == Some("prod/shop-b")
    });
    let status = watched.0.status();
    assert!(status.is_whole(), "{status}");
    assert_eq!((status.pods, status.counts.services, status.counts.endpoints), (1, 1, 1));
    let text = format!(
        "http://{}: Kubernetes v1.33.1, 1 pods of node n1, 1 addresses of services, 1 of endpoints",
        fake.address()
    );
    assert_eq!(status.to_string(), text);
    assert!(fake.requests("GET /api/v1/pods").iter().all(|request| request.contains("nodeName%3Dn1")));
}

#[test]
fn a_directory_joins_what_path_and_cluster_tell() {
    let fake = cluster();
    let root = tempfile::tempdir().unwrap();
    let id = "3f4d9a1be0c75c21d8f6aa0970b4e1c22d6b8f0e9a7c5d3b1f2e4a6c8d0b9e7f";
    let uid = "0b7a2c1e-5f3d-4a86-9c1b-7d2e8f4a6b05";
    let mut late = pod("shop-f", "n1", id, "10.1.0.11");
    late["metadata"]["uid"] = json!(uid);
    let path = root.path().join(format!("kubepods/burstable/pod{uid}/{id}"));
    std::fs::create_dir_all(&path).unwrap();
    let cgroup = std::fs::metadata(&path).unwrap().ino();
    let directory = Directory::start(Options {
        mount: Some(Mount { point: root.path().to_owned(), root: "/".to_owned() }),
        runtime_sockets: Some(Vec::new()),
        kubernetes: Access::find(Some(&fake.kubeconfig()), Some("n1")).unwrap(),
    })
    .unwrap();
    directory.settle(LONG);
    assert!(directory.kubernetes().unwrap().is_whole() && directory.awaits_names());
    let before = directory.resolve(cgroup);
    assert_eq!((before.name.as_str(), before.owner.as_ref()), ("3f4d9a1be0c7", None));
    fake.put(PODS, late);
    let begun = Instant::now();
    while directory.resolve(cgroup).name != "web" {
        assert!(begun.elapsed() < LONG, "{:?}", directory.resolve(cgroup));
        thread::sleep(Duration::from_millis(5));
    }
    let told = directory.resolve(cgroup);
    assert_eq!((told.pod.as_deref(), told.node.as_deref()), (Some("shop-f"), Some("n1")));
    assert_eq!(told.owner.as_ref().map(ToString::to_string).as_deref(), Some("Deployment/shop"));
    assert!(Arc::ptr_eq(&told, &directory.resolve(cgroup)), "cached");
    let name = directory.name_of("10.96.0.7".parse().unwrap(), 80);
    assert_eq!(name.map(|name| name.to_string()).as_deref(), Some("prod/shop"));
}

#[test]
fn changes_are_learnt_without_another_list() {
    let fake = cluster();
    let watched = Watched::start(&fake);
    let generation = watched.0.generation();
    fake.put(PODS, pod("shop-c", "n1", "ccc", "10.1.0.6"));
    watched.until("a new pod", |watched| watched.container("ccc").is_some());
    assert!(watched.0.generation() > generation);
    fake.put(SERVICES, service("shop", "10.96.0.8"));
    watched.until("another address", |watched| watched.address("10.96.0.8", 80).is_some());
    assert_eq!(watched.address("10.96.0.7", 80), None);
    fake.delete(PODS, "prod", "shop-a");
    fake.delete(SLICES, "prod", "shop-1");
    watched.until("gone", |watched| watched.0.status().pods == 1 && watched.0.status().counts.endpoints == 0);
    assert_eq!(watched.address("10.1.0.5", 80), None);
    assert!(watched.container("aaa").is_some(), "named until its grace ends");
    fake.put(SLICES, slice("late", "10.3.0.1", "late-a", "n3"));
    fake.put(NODES, node("n3", "192.0.2.3"));
    watched.until("a new node", |watched| watched.address("10.3.0.1", 45_000).is_some());
    for path in [PODS, SERVICES, SLICES] {
        let requests = fake.requests(&format!("GET {path}?"));
        let lists = requests.iter().filter(|request| !request.contains("watch=true")).count();
        assert_eq!(lists, 1, "{requests:?}");
    }
}

#[test]
fn a_watch_goes_on_where_the_last_one_ended() {
    let fake = cluster();
    let watched = Watched::start(&fake);
    for (n, cut) in [Cut::InOrder, Cut::InAChunk, Cut::InOrder, Cut::InAChunk].into_iter().enumerate() {
        watched.until("listening", |_| fake.listening() == 3);
        for path in [PODS, SERVICES, SLICES] {
            fake.bookmark(path);
        }
        fake.forget_requests();
        fake.cut(cut);
        let (name, id) = (format!("next-{n}"), format!("id-{n}"));
        fake.put(PODS, pod(&name, "n1", &id, "10.1.0.9"));
        watched.until("the next", |watched| watched.container(&id).is_some());
        assert!(watched.is_connected(), "{}", watched.0.status());
        let requests = fake.requests("GET /api/v1/pods?");
        assert!(requests.iter().all(|request| request.contains("watch=true")), "{requests:?}");
    }
}

#[test]
fn a_bookmark_moves_the_position() {
    let fake = cluster();
    let watched = Watched::start(&fake);
    // Nothing happens to services, while the server forgets what was before the bookmark.
    watched.until("listening", |_| fake.listening() == 3);
    for path in [PODS, SERVICES, SLICES] {
        fake.bookmark(path);
    }
    fake.put(SERVICES, service("mark", "10.96.0.9"));
    watched.until("read", |watched| watched.address("10.96.0.9", 80).is_some());
    fake.forget_requests();
    fake.cut(Cut::InOrder);
    watched.until("again", |_| fake.requests("GET /apis/discovery").len() == 1);
    let asked = fake.requests("GET /apis/discovery").remove(0);
    let version: u64 = asked.rsplit_once("resourceVersion=").unwrap().1.parse().unwrap();
    assert_eq!(
        version, 109,
        "the bookmark's: six objects, then one bookmark each for pods, services, slices"
    );
}

#[test]
fn what_the_server_forgot_is_listed_again() {
    for as_event in [false, true] {
        let fake = cluster();
        let watched = Watched::start(&fake);
        watched.until("listening", |_| fake.listening() == 3);
        fake.hang(true);
        fake.cut(Cut::InOrder);
        watched.until("cut", |_| fake.listening() == 0);
        fake.delete(PODS, "prod", "shop-a");
        fake.put(PODS, pod("shop-d", "n1", "ddd", "10.1.0.7"));
        fake.delete(SERVICES, "prod", "shop");
        fake.forget_changes(as_event);
        fake.forget_requests();
        fake.hang(false);
        watched.until("listed again", |watched| {
            watched.container("ddd").is_some() && watched.address("10.96.0.7", 80).is_none()
        });
        watched.until("all", |watched| watched.is_connected() && fake.listening() == 3);
        assert_eq!((watched.0.status().pods, watched.address("10.1.0.5", 1)), (1, None));
        let requests = fake.requests("GET /api/v1/pods?");
        let list = requests.iter().rfind(|request| !request.contains("watch=true")).unwrap();
        assert!(!list.contains("resourceVersion"), "the newest: {list}");
        fake.put(SERVICES, service("after", "10.96.0.9"));
        watched.until("watching", |watched| watched.address("10.96.0.9", 80).is_some());
    }
}

#[test]
fn an_expired_token_is_read_again() {
    let fake = cluster();
    fake.want_token("first");
    let watched = Watched::start(&fake);
    assert!(watched.is_connected(), "{}", watched.0.status());
    fake.want_token("second");
    fake.cut(Cut::InOrder);
    watched.until("refused", |watched| watched.has_failed("does not accept the credentials (401"));
    assert!(watched.container("aaa").is_some(), "what is known stays");
    fake.put(PODS, pod("shop-c", "n1", "ccc", "10.1.0.6"));
    fake.write_token("second");
    watched.until("accepted", |watched| watched.is_connected() && watched.container("ccc").is_some());
}

#[test]
fn what_is_not_allowed_is_said_and_the_rest_is_told() {
    let fake = cluster();
    let jobs = "/apis/batch/v1/namespaces/prod/jobs/backup-1";
    fake.deny(&[SERVICES, NODES, jobs, "/version"]);
    let mut backup = pod("backup-1-x", "n1", "jjj", "10.1.0.9");
    backup["metadata"]["ownerReferences"] = json!([{"kind": "Job", "name": "backup-1", "controller": true}]);
    fake.put(PODS, backup);
    fake.put(
        JOBS_PATH,
        json!({"metadata": {"name": "backup-1", "namespace": "prod",
                            "ownerReferences": [{"kind": "CronJob", "name": "backup", "controller": true}]}}),
    );
    let watched = Watched::start(&fake);
    watched.until("three complaints", |watched| watched.0.status().complaints.len() == 3);
    let services = "no names of services: not allowed to list services: grant `list` on `services` of the core API \
                    group, as the ClusterRole in docs/kubernetes.md does (User \"test\" cannot do that at the cluster \
                    scope)";
    assert!(watched.complains(services), "{}", watched.0.status());
    assert!(watched.complains("not allowed to get jobs: grant `get` on `jobs` of API group batch"));
    assert!(watched.complains("not allowed to list nodes"));
    assert!(!watched.0.status().is_whole());
    assert_eq!(watched.0.status().state, KubernetesState::Connected { version: String::new() });
    assert_eq!(watched.container("jjj").as_deref(), Some("Job/backup-1 backup-1-x web"));
    assert_eq!(watched.address("10.2.0.5", 8080).as_deref(), Some("prod/shop-b"));
    assert_eq!((watched.address("10.2.0.5", 45_000), watched.address("10.96.0.7", 80)), (None, None));
    fake.deny(&[]);
    watched.until("granted", |watched| watched.0.status().is_whole());
    watched.until("told", |watched| watched.address("10.2.0.5", 45_000).is_some());
    assert_eq!(watched.container("jjj").as_deref(), Some("CronJob/backup backup-1-x web"));
    assert_eq!(watched.address("10.96.0.7", 80).as_deref(), Some("prod/shop"));
    fake.deny(&[PODS, SERVICES, SLICES]);
    fake.cut(Cut::InOrder);
    // That the connections were cut is a complaint, too, until the server has answered again.
    watched.until("withdrawn", |watched| {
        watched.0.status().complaints.len() == 3 && watched.complains("not allowed to watch pods")
    });
}

#[test]
fn a_server_may_be_absent_come_go_and_return() {
    // A port that is free for now.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "first").unwrap();
    let file = directory.path().join("kubeconfig");
    std::fs::write(&file, kubeconfig(&address, &token)).unwrap();
    let access = Access::find(Some(&file), Some("n1")).unwrap().unwrap();
    let begun = Instant::now();
    let watched = Watched(Kubernetes::start(access, QUICK).unwrap());
    assert!(begun.elapsed() < Duration::from_millis(500), "nobody waits");
    watched.0.settle(LONG);
    assert!(watched.has_failed("refused"), "{}", watched.0.status());
    let fake = FakeApi::start_at(&address);
    fill(&fake);
    watched.until("came", |watched| watched.is_connected() && watched.container("aaa").is_some());
    drop(fake);
    watched.until("went", |watched| watched.has_failed("refused"));
    assert!(watched.container("aaa").is_some());
    let fake = FakeApi::start_at(&address);
    fake.put(PODS, pod("shop-e", "n1", "eee", "10.1.0.8"));
    // This one has another history: what was seen of the other is in its future.
    watched.until("returned", |watched| watched.is_connected() && watched.container("eee").is_some());
    watched.until("replaced", |watched| watched.0.status().pods == 1);
}

#[test]
fn a_silent_server_is_given_up() {
    let fake = cluster();
    fake.hang(true);
    let begun = Instant::now();
    let watched = Watched::start(&fake);
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(watched.has_failed("no answer within 500ms"), "{}", watched.0.status());
    fake.hang(false);
    watched.until("came", |watched| watched.is_connected() && watched.container("aaa").is_some());
    fake.hang(true);
    fake.cut(Cut::InOrder);
    watched.until("fell silent", |watched| watched.has_failed("no answer within 500ms"));
    assert!(watched.container("aaa").is_some());
}

#[test]
fn garbage_is_an_error_and_then_forgotten() {
    for (code, text, why) in [
        (200, "]\u{0}{ not json", "not Kubernetes'"),
        (200, "{}", "not Kubernetes'"),
        (
            200,
            "{\"metadata\": {\"resourceVersion\": \"1\"}, \"gitVersion\": \"v1\"}",
            "missing field `items`",
        ),
        (500, "<html>oops", "answered 500"),
        (302, "", "not Kubernetes'"),
    ] {
        let fake = cluster();
        fake.answer(Some((code, text)));
        let watched = Watched::start(&fake);
        watched.until(why, |watched| watched.has_failed(why));
        fake.answer(None);
        watched.until("recovered", |watched| watched.is_connected() && watched.container("aaa").is_some());
    }
    let fake = cluster();
    let watched = Watched::start(&fake);
    watched.until("listening", |_| fake.listening() == 3);
    fake.garbage(PODS);
    fake.delete(PODS, "prod", "shop-a");
    fake.put(PODS, pod("shop-c", "n1", "ccc", "10.1.0.6"));
    watched.until("listed again", |watched| watched.container("ccc").is_some());
    watched.until("one", |watched| watched.0.status().pods == 1 && watched.is_connected());
}

#[test]
fn a_wrong_name_of_the_node_is_said() {
    let fake = cluster();
    let access = Access::find(Some(&fake.kubeconfig()), Some("other")).unwrap().unwrap();
    let watched = Watched(Kubernetes::start(access, QUICK).unwrap());
    watched.0.settle(LONG);
    assert!(watched.complains("no pod is on a node `other`: --node or NODE_NAME"), "{}", watched.0.status());
}

#[test]
fn twenty_thousand_endpoints() {
    let fake = cluster();
    for n in 0..2000 {
        let endpoint = |e: usize| {
            let address = format!("10.{}.{}.{e}", 100 + n / 250, n % 250);
            let pod = json!({"kind": "Pod", "name": format!("p-{n}-{e}"), "namespace": "prod"});
            json!({"addresses": [address], "nodeName": "n2", "targetRef": pod})
        };
        let endpoints: Vec<_> = (0..10).map(endpoint).collect();
        fake.put(
            SLICES,
            json!({"metadata": {"name": format!("s-{n}"), "namespace": "prod"},
                   "endpoints": endpoints, "ports": [{"port": 8080}]}),
        );
        fake.put(SERVICES, service(&format!("s-{n}"), &format!("10.97.{}.{}", n / 250, n % 250)));
    }
    let begun = Instant::now();
    let watched = Watched::start_with(&fake, Timing { request: Duration::from_secs(15), ..QUICK });
    assert!(begun.elapsed() < LONG);
    let counts = watched.0.status().counts;
    assert_eq!((counts.services, counts.endpoints, counts.left_out), (2001, 20_001, 0));
    watched
        .until("the nodes", |watched| watched.address("10.107.249.9", 1).as_deref() == Some("prod/p-1999-9"));
    assert_eq!(watched.address("10.97.7.249", 80).as_deref(), Some("prod/s-1999"));
    let pages = fake.requests("GET /api/v1/services?&limit=250").len();
    assert_eq!(pages, 9, "{:?}", fake.requests("GET /api/v1/services"));
}

#[test]
fn a_kubeconfig_that_is_none_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("kubeconfig");
    let error = |file| format!("{:#}", Access::find(Some(file), None).unwrap_err());
    assert!(error(&file).contains("kubeconfig: not usable: "), "{}", error(&file));
    std::fs::write(&file, "]not yaml[").unwrap();
    assert!(error(&file).contains("kubeconfig: not usable: "), "{}", error(&file));
    // One that leads nowhere is told where it is used.
    std::fs::write(&file, "apiVersion: v1\nkind: Config\n").unwrap();
    let access = Access::find(Some(&file), Some("n1")).unwrap().unwrap();
    let watched = Watched(Kubernetes::start(access, QUICK).unwrap());
    watched.0.settle(LONG);
    assert!(watched.has_failed("taking the kubeconfig"), "{}", watched.0.status());
}
