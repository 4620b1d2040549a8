//! scratch
use probe::*;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let t = std::time::Instant::now();
    let mut m = Monitor::start(&Options { events: 0x3f, totals: true, samples: true, rows: 16384, measure: true, filter_cgroups: true, ..Options::default() })?;
    println!("attached in {:?}", t.elapsed());
    let w = m.walk(Some(&mut |c| println!("row {c:?}")))?;
    println!("{w:?}");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(std::env::args().nth(1).map_or(1, |s| s.parse().unwrap()));
    let mut n = 0;
    while std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(50));
        n += m.events(&mut |c| if std::env::args().len() < 3 { println!("event {c:?}") })?;
    }
    println!("{n} events, lost {:?}", m.losses());
    let w = m.walk(None)?;
    println!("{w:?}");
    for (id, t) in m.totals()? { println!("{id} {t:?}"); }
    for p in m.programs() { println!("{} {} {:?}", p.program.name, p.status, p.run); }
    for e in m.cgroup_events()? { println!("{e:?}"); }
    Ok(())
}
