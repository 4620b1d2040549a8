//! Prints every failed connect of this host, whichever container or namespace it is in. Needs root:
//!
//! ```sh
//! cargo build -p tcptide-probe --example failed_connects && sudo target/debug/examples/failed_connects
//! ```

use std::{error::Error, thread::sleep, time::Duration};

use model::{
    connection::{Event, REASON_NAMES, peer},
    record::FLAG_PREEXISTING,
};
use probe::{Monitor, Options};

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options { events: Event::Fail.bit(), ..Options::default() };
    let mut monitor = Monitor::start(&options)?;
    loop {
        sleep(Duration::from_millis(100));
        monitor.events(&mut |c| {
            let peer = peer(c);
            let after = if c.flags & FLAG_PREEXISTING != 0 { 0 } else { (c.time_ns - c.opened_ns) / 1000 };
            println!(
                "pid {} in cgroup {}: {} port {}: {} after {after} us",
                c.pid,
                c.cgroup_id,
                peer.address,
                peer.port.unwrap_or_default(),
                REASON_NAMES[usize::from(c.reason)],
            );
        })?;
    }
}
