//! `/live`: answers of other endpoints, again and again, in one stream: a browser opens few connections to a server.

use std::{
    convert::Infallible,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{RawQuery, State},
    http::{Request, StatusCode, Uri},
    response::{Response, sse::Event},
};
use futures_util::stream;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::sleep;
use tower::ServiceExt as _;

use super::{
    Refusal, Said,
    endpoints::{ENDPOINTS, streamed},
    query,
};
use crate::agent::gauge::Gauge;

/// A longer answer is not for who wants it again and again, bytes.
const MOST: usize = 16 << 20;

/// An answer in the stream.
#[derive(Serialize)]
struct Told<'a> {
    ask: &'a str,
    status: u16,
    answer: &'a RawValue,
}

/// The questions of one stream.
struct Live {
    asked: Vec<(String, Uri)>,
    interval: Duration,
    /// The one to be asked next.
    next: usize,
    /// What tells an answer from the one before, of each.
    told: Vec<Option<u64>>,
    hasher: RandomState,
    endpoints: Router,
}

pub(super) async fn live(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Live { ask, interval } = query::parse(query.as_deref())?;
    if ask.len() > query::QUESTIONS {
        return Err(Refusal::wrong(format!("there are {} ask: {} at most", ask.len(), query::QUESTIONS)));
    }
    let asked = ask.into_iter().map(question).collect::<Result<Vec<_>, _>>()?;
    let live = Live {
        told: vec![None; asked.len()],
        asked,
        interval,
        next: 0,
        hasher: RandomState::new(),
        endpoints: super::router().with_state(gauge),
    };
    Ok(streamed(stream::unfold(live, async |mut live| {
        let event = live.next().await;
        Some((Ok::<_, Infallible>(event), live))
    })))
}

/// What can be asked ends.
fn question(ask: String) -> Result<(String, Uri), Refusal> {
    let uri = ask.parse::<Uri>().ok().filter(|uri| uri.scheme().is_none());
    let Some(uri) = uri else {
        return Err(Refusal::wrong(format!("{ask:?} is no question such as /states?container=web")));
    };
    let known =
        || ENDPOINTS.iter().filter(|endpoint| endpoint.answer.is_some()).map(|endpoint| endpoint.path);
    if !known().any(|path| path == uri.path()) {
        let known: Vec<_> = known().collect();
        return Err(Refusal::wrong(format!("{ask:?} cannot be asked here; there are {}", known.join(", "))));
    }
    Ok((ask, uri))
}

impl Live {
    /// The next answer that is not as it was.
    async fn next(&mut self) -> Event {
        loop {
            if self.next == self.asked.len() {
                self.next = 0;
                sleep(self.interval).await;
            }
            let at = self.next;
            self.next += 1;
            let (status, text) = self.ask(&self.asked[at].1).await;
            let told = self.hasher.hash_one((status.as_u16(), &text));
            if self.told[at].replace(told) == Some(told) {
                continue;
            }
            let answer = serde_json::from_str(&text).unwrap_or(RawValue::NULL);
            let told = Told { ask: &self.asked[at].0, status: status.as_u16(), answer };
            return Event::default().event("answer").data(serde_json::to_string(&told).unwrap_or_default());
        }
    }

    async fn ask(&self, uri: &Uri) -> (StatusCode, String) {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri.clone();
        let answer = match self.endpoints.clone().oneshot(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        let status = answer.status();
        match to_bytes(answer.into_body(), MOST).await.map(|bytes| String::from_utf8(bytes.into())) {
            Ok(Ok(text)) => (status, text),
            _ => {
                let error = format!("the answer has more than {} MiB: ask for less of it", MOST >> 20);
                let said = serde_json::to_string(&Said { error }).unwrap_or_default();
                (StatusCode::BAD_REQUEST, said)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_can_be_asked() {
        let of = |ask: &str| question(ask.to_owned()).map_err(|refusal| refusal.text);
        let (ask, uri) = of("/states?container=a%20b").unwrap();
        assert_eq!(
            (ask.as_str(), uri.path(), uri.query()),
            ("/states?container=a%20b", "/states", Some("container=a%20b"))
        );
        for (ask, said) in [
            ("/events", "there are /connections"),
            ("/live?ask=/states", "there are /connections"),
            ("/api/v1/states", "cannot be asked here"),
            ("http://example.com/states", "is no question such as"),
            ("states", "cannot be asked here"),
            ("", "is no question such as"),
            ("/states?a b", "is no question such as"),
        ] {
            let text = of(ask).unwrap_err();
            assert!(text.contains(said), "{ask}: {text}");
        }
    }
}
