//! Conversations over CRI with a fake runtime, which does what real ones do on bad days, too.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use k8s_cri::v1::{ContainerEventType, ImageSpec};

use super::super::fake_cri::{Call, FakeCri, container, event, pod};
use super::super::registry::RuntimeState;
use super::super::runtime::Timing;
use super::super::watched::{QUICK, Watched, is_failed};
use super::*;

/// Patient enough for long answers.
const PATIENT: Timing =
    Timing { request: Duration::from_secs(15), longest_retry: Duration::from_secs(30), ..QUICK };

/// A full id that ends in this number.
fn id(n: usize) -> String {
    format!("{n:064x}")
}

fn settled(fake: &FakeCri, timing: Timing) -> Watched {
    let watched = Watched::start(vec![fake.socket()], timing);
    watched.registry.settle(Duration::from_secs(20));
    watched
}

fn is_connected(watched: &Watched) -> bool {
    matches!(watched.state(), RuntimeState::Connected { .. })
}

#[test]
fn pods_and_containers_are_named() {
    let fake = FakeCri::start();
    let mut long = container("ccc", "long", "sss");
    long.labels.insert("long".to_owned(), "x".repeat(65_536));
    let lonely = container("ddd", "lonely", "gone");
    fake.list(vec![pod("sss", "shop")], vec![container("bbb", "web", "sss"), long, lonely]);
    let watched = settled(&fake, QUICK);
    assert_eq!(watched.state(), RuntimeState::Connected { server: "containerd 1.6.20".into() });
    let web = watched.registry.metadata("bbb").unwrap();
    assert_eq!((web.name.as_deref(), web.image.as_deref()), (Some("web"), Some("nginx:1")));
    assert_eq!((web.pod.as_deref(), web.namespace.as_deref()), (Some("shop"), Some("prod")));
    assert_eq!((web.pod_uid.as_deref(), &*web.labels["tier"]), (Some("uid-of-shop"), "front"));
    assert_eq!((&*web.annotations["owner"], &*web.annotations["config"]), ("the container", "b"));
    let sandbox = watched.registry.metadata("sss").unwrap();
    assert_eq!((sandbox.name.as_deref(), sandbox.pod.as_deref()), (Some("POD"), Some("shop")));
    assert_eq!([&web.sandbox, &sandbox.sandbox].map(Option::as_deref), [Some("sss"); 2]);
    assert_eq!(sandbox.annotations["owner"], "the pod");
    assert_eq!(watched.registry.metadata("ccc").unwrap().labels["long"].len(), 4096);
    let lonely = watched.registry.metadata("ddd").unwrap();
    assert_eq!((lonely.pod.as_deref(), lonely.sandbox.as_deref()), (None, Some("gone")));
    assert_eq!(watched.registry.statuses()[0].containers, 4);
}

#[test]
fn an_unknown_container_is_asked_for_by_its_id() {
    let fake = FakeCri::start();
    let watched = settled(&fake, QUICK);
    fake.list(
        vec![pod(&id(1), "shop")],
        vec![container(&id(2), "web", &id(1)), container(&id(3), "db", &id(1))],
    );
    watched.registry.ask_for(&id(2));
    watched.until("asked for", |watched| watched.name(&id(2)).as_deref() == Some("web"));
    assert_eq!(watched.registry.metadata(&id(2)).unwrap().pod.as_deref(), Some("shop"));
    assert_eq!(watched.name(&id(1)).as_deref(), Some("POD"), "its sandbox is told with it");
    assert_eq!((fake.lists(), fake.asked()), (1, vec![id(2)]));
    assert_eq!(watched.name(&id(3)), None);

    // A sandbox by itself, and what is known or no id of CRI's.
    fake.list(vec![pod(&id(4), "other")], Vec::new());
    for wanted in ["machine", "", &id(2)[..63], &id(4)] {
        watched.registry.ask_for(wanted);
    }
    watched.until("sandbox", |watched| watched.name(&id(4)).as_deref() == Some("POD"));
    assert_eq!(fake.asked(), [id(2), id(4)]);
}

#[test]
fn a_cgroup_may_be_there_before_its_container() {
    let fake = FakeCri::start();
    let watched = settled(&fake, QUICK);
    watched.registry.ask_for(&id(2));
    watched.until("asked for twice", |_| fake.asked().len() >= 2);
    fake.list(vec![pod(&id(1), "shop")], vec![container(&id(2), "web", &id(1))]);
    watched.until("found", |watched| watched.name(&id(2)).as_deref() == Some("web"));
    assert_eq!(fake.lists(), 1);
}

#[test]
fn a_storm_of_containers_is_asked_for_in_peace() {
    let fake = FakeCri::start();
    let watched = settled(&fake, QUICK);
    let begun = Instant::now();
    for n in 0..3000 {
        watched.registry.ask_for(&id(n));
    }
    fake.list(Vec::new(), vec![container(&id(5000), "web", &id(1))]);
    watched.registry.ask_for(&id(5000));
    watched.until("the latest is found soon", |watched| watched.name(&id(5000)).is_some());
    thread::sleep(Duration::from_secs(1));
    let most = 22 + begun.elapsed().as_millis() / 100;
    let asked = fake.asked().len();
    assert!((20..=most).contains(&(asked as u128)), "asked for {asked} in {:?}", begun.elapsed());
    assert_eq!(fake.lists(), 1);
    assert!(is_connected(&watched));
}

#[test]
fn events_name_and_remove() {
    let fake = FakeCri::with_events();
    let watched = settled(&fake, QUICK);
    fake.event(&event(ContainerEventType::ContainerCreatedEvent, "bbb", "web"));
    watched.until("created", |watched| watched.name("bbb").as_deref() == Some("web"));
    let web = watched.registry.metadata("bbb").unwrap();
    assert_eq!((web.pod.as_deref(), web.sandbox.as_deref()), (Some("shop"), Some("sss")));
    assert_eq!((&*web.annotations["owner"], &*web.annotations["config"]), ("the container", "b"));
    assert_eq!(watched.name("other"), None, "an event is of one container");
    assert_eq!(watched.name("sss").as_deref(), Some("POD"), "its sandbox is told with it");
    fake.event(&event(ContainerEventType::ContainerStoppedEvent, "bbb", "web"));
    let mut newer = event(ContainerEventType::ContainerCreatedEvent, "eee", "of a kind not known here");
    newer.container_event_type = 99;
    fake.event(&newer);
    fake.event(&event(ContainerEventType::ContainerDeletedEvent, "bbb", "web"));
    watched.until("removed", |watched| watched.registry.statuses()[0].containers == 1);
    assert_eq!(watched.name("bbb").as_deref(), Some("web"), "named until its grace ends");
    assert_eq!(watched.name("eee"), None);
    assert_eq!((fake.lists(), fake.asked().len()), (1, 0));
}

#[test]
fn a_silent_server_is_given_up() {
    for call in [Call::Version, Call::Containers, Call::Pods] {
        let fake = FakeCri::start();
        fake.hang_at(call);
        let watched = settled(&fake, QUICK);
        assert!(is_failed(&watched, "no answer within 300ms"), "{call:?}: {:?}", watched.state());
    }
}

#[test]
fn a_socket_that_nobody_serves_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("containerd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let watched = Watched::start(vec![socket], QUICK);
    watched.registry.settle(Duration::from_secs(20));
    assert!(is_failed(&watched, "no answer within 300ms"), "{:?}", watched.state());
    drop(listener);
    watched.until("refused", |watched| is_failed(watched, "asking for a connection"));
}

#[test]
fn a_server_that_falls_silent_is_noticed_and_asked_again() {
    for call in [Call::Version, Call::Containers] {
        let fake = FakeCri::start();
        let watched = settled(&fake, QUICK);
        assert!(is_connected(&watched), "{:?}", watched.state());
        fake.hang_at(call);
        watched.registry.ask_for(&id(2));
        watched.until("noticed", |watched| is_failed(watched, "no answer within 300ms"));
        fake.list(Vec::new(), vec![container(&id(2), "web", &id(1))]);
        fake.answer_all();
        watched.until("recovered", |watched| is_connected(watched) && watched.name(&id(2)).is_some());
    }
}

#[test]
fn garbage_is_an_error_and_then_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("containerd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        let answer = |mut stream: UnixStream| {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n\0\xff\xfe").ok();
            stream
        };
        let kept_open: Vec<_> = listener.incoming().flatten().take(3).map(answer).collect();
        drop(kept_open);
    });
    let watched = Watched::start(vec![socket.clone()], QUICK);
    watched.registry.settle(Duration::from_secs(20));
    assert!(is_failed(&watched, "asking for "), "{:?}", watched.state());
    watched.until("refused", |watched| is_failed(watched, "asking for a connection"));
    std::fs::remove_file(&socket).unwrap();
    let _fake = FakeCri::start_at(&socket, vec![container("bbb", "web", "sss")]);
    watched.until("recovered", |watched| watched.name("bbb").is_some());
}

#[test]
fn a_runtime_may_come_go_and_return() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("crio.sock");
    let watched = Watched::start(vec![socket.clone()], QUICK);
    watched.registry.settle(Duration::from_secs(20));
    assert_eq!(watched.state(), RuntimeState::Absent);
    let fake = FakeCri::start_at(&socket, vec![container("bbb", "web", "sss")]);
    watched.until("came", |watched| watched.name("bbb").is_some());
    drop(fake);
    watched.until("went", |watched| watched.state() == RuntimeState::Absent);
    assert_eq!(watched.name("bbb").as_deref(), Some("web"));
    let _fake = FakeCri::start_at(&socket, vec![container("eee", "again", "sss")]);
    watched.until("returned", |watched| watched.name("eee").is_some());
    assert_eq!(watched.registry.statuses()[0].containers, 1, "the first one is gone");
}

#[test]
fn ten_thousand_containers_with_long_labels() {
    let fake = FakeCri::start();
    let of = |n: usize| {
        let mut one = container(&format!("id{n}"), &format!("c{n}"), "sss");
        // More in all than gRPC's usual limit of 4 MiB, and than is kept.
        one.annotations.insert("spec".to_owned(), "x".repeat(3000));
        one.labels.insert("long".to_owned(), "x".repeat(3000));
        one
    };
    fake.list(vec![pod("sss", "shop")], (0..10_000).map(of).collect());
    let watched = settled(&fake, PATIENT);
    assert_eq!(watched.registry.statuses()[0].containers, 10_001, "{:?}", watched.state());
    assert_eq!(watched.name("id9999").as_deref(), Some("c9999"));
}

#[test]
fn an_answer_without_end_is_refused() {
    let fake = FakeCri::start();
    let mut one = container("bbb", "web", "sss");
    one.annotations.insert("spec".to_owned(), "x".repeat(LONGEST_ANSWER));
    fake.list(Vec::new(), vec![one]);
    let watched = settled(&fake, PATIENT);
    assert!(is_failed(&watched, "asking for its containers"), "{:?}", watched.state());
    assert!(is_failed(&watched, "too large"), "{:?}", watched.state());
}

#[test]
fn odd_names_are_kept_and_empty_ones_are_none() {
    let odd = "we\"b\n\t\u{1b}[31m\u{0}'; --\u{202e}é";
    let fake = FakeCri::start();
    let mut named = container("bbb", odd, "sss");
    named.labels.insert(odd.to_owned(), odd.to_owned());
    let mut empty = container("", "", "");
    (empty.image, empty.labels, empty.annotations) =
        (Some(ImageSpec::default()), HashMap::new(), HashMap::new());
    let mut bare = container("ddd", "", "ttt");
    (bare.metadata, bare.image) = (None, None);
    let mut nameless = pod("ttt", "");
    nameless.metadata = None;
    fake.list(vec![pod("sss", odd), nameless], vec![named, empty, bare]);
    let watched = settled(&fake, QUICK);
    assert!(is_connected(&watched), "{:?}", watched.state());
    let told = watched.registry.metadata("bbb").unwrap();
    assert_eq!((told.name.as_deref(), told.pod.as_deref()), (Some(odd), Some(odd)));
    assert_eq!(told.labels[odd], odd);
    assert_eq!(*watched.registry.metadata("").unwrap(), Metadata::default());
    let bare = watched.registry.metadata("ddd").unwrap();
    assert_eq!((&bare.name, &bare.image, &bare.pod), (&None, &None, &None));
    assert_eq!(bare.annotations["owner"], "the container");
}

#[test]
fn an_image_is_called_as_the_user_called_it() {
    let digest = format!("sha256:{}", id(7));
    let spec = |image: &str, user: &str| ImageSpec {
        image: image.to_owned(),
        user_specified_image: user.to_owned(),
        ..ImageSpec::default()
    };
    assert_eq!(named_image(&spec(&digest, "nginx:1")), Some("nginx:1"));
    assert_eq!(named_image(&spec("nginx:1", "")), Some("nginx:1"));
    assert_eq!(named_image(&spec(&digest, "")), None);
    assert_eq!(named_image(&spec(&id(7), "")), None);
    let names = HashMap::from([(digest.clone(), "redis:7".to_owned())]);
    let of = |image: &str| {
        let mut listed = container("bbb", "web", "sss");
        listed.image = Some(spec(image, ""));
        told(vec![listed], &[], &names)[0].1.image.clone()
    };
    assert_eq!(of(&digest).as_deref(), Some("redis:7"));
    assert_eq!(of(&id(8)), Some(id(8)), "an id is better than nothing");
    assert_eq!(of(""), None);
}
