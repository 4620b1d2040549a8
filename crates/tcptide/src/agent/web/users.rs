//! Who may ask: HTTP's basic authentication against bcrypt hashes.
//!
//! A hash is made to take long. What was right is remembered, so that scrapes do not cost one each; what is wrong is not, takes
//! as long whether there is such a user or not, and no more than half of one processor, however many try.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use anyhow::Context as _;
use axum::http::{HeaderMap, header};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    hmac::{self, HMAC_SHA256, Key, Tag},
    rand::SystemRandom,
};
use tokio::{
    sync::{Semaphore, oneshot},
    task::spawn_blocking,
    time::sleep,
};

use super::config::Users;

/// The longest one that bcrypt looks at: a longer one is cut, as Go does.
const LONGEST: usize = 72;

/// Looks at names and passwords, one at a time.
pub(super) struct Gate {
    key: Key,
    /// The hash that a user's last right password had, and what tells the password again.
    right: Mutex<HashMap<String, (String, Tag)>>,
    turn: Arc<Semaphore>,
}

impl Gate {
    pub(super) fn new() -> anyhow::Result<Self> {
        let key = Key::generate(HMAC_SHA256, &SystemRandom::new())
            .ok()
            .context("the system has no random numbers")?;
        Ok(Self { key, right: Mutex::default(), turn: Arc::new(Semaphore::new(1)) })
    }

    fn right(&self) -> MutexGuard<'_, HashMap<String, (String, Tag)>> {
        self.right.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_known(&self, user: &str, password: &[u8], hash: Option<&String>) -> bool {
        let right = self.right();
        right.get(user).is_some_and(|(of, tag)| {
            Some(of) == hash && hmac::verify(&self.key, password, tag.as_ref()).is_ok()
        })
    }

    /// Whether a request with these headers is one of these users'.
    pub(super) async fn admits(&self, users: &Users, headers: &HeaderMap) -> bool {
        let said = headers.get(header::AUTHORIZATION).and_then(|value| basic(value.as_bytes()));
        let Some((user, password)) = said else { return false };
        let hash = users.get(&user);
        if self.is_known(&user, &password, hash) {
            return true;
        }
        // Who is nobody is compared with somebody, always the same one, to no avail.
        let Some(compared) = hash.or_else(|| self.somebody(users, &user)).cloned() else { return false };
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else { return false };
        if self.is_known(&user, &password, hash) {
            return true;
        }
        let tag = hmac::sign(&self.key, &password);
        let (tell, told) = oneshot::channel();
        // Goes on by itself: who leaves does not make the next one come earlier.
        tokio::spawn(async move {
            let began = Instant::now();
            let same = spawn_blocking(move || {
                let password = &password[..password.len().min(LONGEST)];
                (bcrypt::verify(password, &compared).unwrap_or(false), compared)
            });
            let (is_right, compared) = same.await.unwrap_or_default();
            let _ = tell.send(is_right.then_some(compared));
            if !is_right {
                sleep(began.elapsed()).await;
            }
            drop(turn);
        });
        match (told.await, hash) {
            (Ok(Some(compared)), Some(_)) => {
                self.right().insert(user, (compared, tag));
                true
            }
            _ => false,
        }
    }

    /// One of the users for each name.
    fn somebody<'a>(&self, users: &'a Users, name: &str) -> Option<&'a String> {
        let tag = hmac::sign(&self.key, name.as_bytes());
        let number =
            tag.as_ref().iter().fold(0_usize, |number, byte| (number << 8 | usize::from(*byte)) % (1 << 40));
        users.values().nth(number.checked_rem(users.len())?)
    }
}

/// The name and the password in a header's value: RFC 7617.
pub(super) fn basic(value: &[u8]) -> Option<(String, Vec<u8>)> {
    let space = value.iter().position(|&byte| byte == b' ')?;
    let (scheme, rest) = value.split_at(space);
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let said = STANDARD.decode(rest.trim_ascii()).ok()?;
    let colon = said.iter().position(|&byte| byte == b':')?;
    let user = String::from_utf8(said[..colon].to_vec()).ok()?;
    Some((user, said[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn headers(user: &str, password: &str) -> HeaderMap {
        let value = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        [(header::AUTHORIZATION, value.parse().unwrap())].into_iter().collect()
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
    }

    #[test]
    fn a_header_is_read_as_the_rfc_has_it() {
        let read = |text: &str| {
            basic(text.as_bytes()).map(|(user, password)| (user, String::from_utf8(password).unwrap()))
        };
        let aladdin = Some(("Aladdin".to_owned(), "open sesame".to_owned()));
        assert_eq!(read("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), aladdin);
        assert_eq!(read("bAsIc  QWxhZGRpbjpvcGVuIHNlc2FtZQ== "), aladdin);
        assert_eq!(read("Basic YTpiOmM="), Some(("a".to_owned(), "b:c".to_owned())));
        for bad in ["", "Basic", "Basic ", "Basic !", "Bearer YTpi", "BasicYTpi", "Basic YQ==", "Basic /zph"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_right_password_of_the_right_user_is_let_in() {
        run(async {
            let gate = Gate::new().unwrap();
            let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
            let mut users: Users =
                [("alice".to_owned(), hash("one")), ("bob".to_owned(), hash("two"))].into();
            for _ in 0..2 {
                assert!(gate.admits(&users, &headers("alice", "one")).await);
                assert!(gate.admits(&users, &headers("bob", "two")).await);
                for (user, password) in
                    [("alice", "two"), ("carol", "one"), ("carol", "two"), ("alice", ""), ("", "one")]
                {
                    assert!(!gate.admits(&users, &headers(user, password)).await, "{user}:{password}");
                }
                assert!(!gate.admits(&users, &HeaderMap::new()).await);
            }
            // What is remembered is of the hash that there was.
            users.insert("alice".to_owned(), hash("three"));
            assert!(!gate.admits(&users, &headers("alice", "one")).await);
            assert!(gate.admits(&users, &headers("alice", "three")).await);
            users.remove("alice");
            assert!(!gate.admits(&users, &headers("alice", "three")).await);
        });
    }

    /// One comparison takes some ms at this cost; all of them together would take seconds.
    #[test]
    fn wrong_passwords_wait_for_each_other_and_for_nobody_who_is_known() {
        run(async {
            let gate = Arc::new(Gate::new().unwrap());
            let users: Users = [("alice".to_owned(), bcrypt::hash("one", 6).unwrap())].into();
            let began = Instant::now();
            assert!(gate.admits(&users, &headers("alice", "one")).await);
            let one = began.elapsed();
            for user in ["alice", "nobody"] {
                let wrong: Vec<_> = (0..10)
                    .map(|_| {
                        let (gate, users) = (Arc::clone(&gate), users.clone());
                        tokio::spawn(async move { gate.admits(&users, &headers(user, "two")).await })
                    })
                    .collect();
                tokio::task::yield_now().await;
                let began = Instant::now();
                assert!(gate.admits(&users, &headers("alice", "one")).await);
                let known = began.elapsed();
                for one in wrong {
                    assert!(!one.await.unwrap());
                }
                // As much rest as work between two of them.
                let all = began.elapsed();
                assert!(all > one.mul_f64(10.0), "{user}: {all:?}, and one takes {one:?}");
                assert!(known < all / 3, "{user}: {known:?} of {all:?}");
            }
            assert!(one > Duration::ZERO);
        });
    }

    proptest! {
        #[test]
        fn what_is_said_is_what_is_read(user in "[^:]{0,20}", password in ".{0,20}") {
            let said = headers(&user, &password);
            let read = basic(said[header::AUTHORIZATION].as_bytes());
            prop_assert_eq!(read, Some((user, password.into_bytes())));
        }

        #[test]
        fn no_header_is_too_odd(value in proptest::collection::vec(any::<u8>(), 0..100)) {
            basic(&value);
            basic(&[b"Basic ".as_slice(), &value].concat());
        }
    }
}
