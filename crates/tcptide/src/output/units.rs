//! Numbers as people write them: three digits and a unit.
use std::net::{IpAddr, SocketAddr};

use jiff::{Timestamp, tz::TimeZone};

/// Microseconds as `812µs`, `1.23ms`, `2.1s`, `3m07s`, `5h02m`, `2d04h`.
pub(crate) fn duration(us: u64) -> String {
    // Where three digits would round up to 1000 of a unit, the next one begins.
    match us {
        0..1_000 => format!("{us}µs"),
        1_000..999_500 => format!("{}ms", three_digits(us as f64 / 1e3)),
        999_500..59_950_000 => format!("{}s", three_digits(us as f64 / 1e6)),
        _ => long_duration(us.saturating_add(500_000) / 1_000_000),
    }
}

fn long_duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Bytes as `512B`, `12.3KiB`, `1.5MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Bytes per second as `3.4MiB/s`.
pub(crate) fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", bytes(bytes_per_second.round() as u64))
}

/// A count as `9999`, `12.3k`, `4.5M`. What four digits hold is exact.
pub(crate) fn count(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        _ => scaled(count as f64, 1000.0, &["", "k", "M", "G", "T", "P", "E"]),
    }
}

/// A share from 0 to 1 as `12.3%`. Something is never `0.0%`.
pub(crate) fn percent(share: f64) -> String {
    if 0.0 < share && share < 0.000_5 { "<0.1%".to_owned() } else { format!("{:.1}%", share * 100.0) }
}

/// A time of day as `HH:MM:SS.mmm`, for a reader in `zone`.
pub(crate) fn clock(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%H:%M:%S.%3f").to_string()
}

/// An endpoint as `10.0.0.1:80` or `[fd00::1]:80`. IPv4 mapped into IPv6 is IPv4.
pub(crate) fn address(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip.to_canonical(), port).to_string()
}

/// `value` in the first unit in which it is shown as less than `base`.
fn scaled(mut value: f64, base: f64, units: &[&str]) -> String {
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    while value >= base - 0.5 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / base, next);
    }
    format!("{}{unit}", three_digits(value))
}

/// Rounded to three digits, with no zeros at the end of a fraction.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        let expected = [
            (0, "0µs"),
            (812, "812µs"),
            (999, "999µs"),
            (1_000, "1ms"),
            (1_234, "1.23ms"),
            (9_995, "10ms"),
            (999_499, "999ms"),
            (999_500, "1s"),
            (2_100_000, "2.1s"),
            (59_949_999, "59.9s"),
            (59_950_000, "1m00s"),
            (187_000_000, "3m07s"),
            (3_599_499_999, "59m59s"),
            (3_599_500_000, "1h00m"),
            (18_120_000_000, "5h02m"),
            (187_200_000_000, "2d04h"),
        ];
        for (us, text) in expected {
            assert_eq!(duration(us), text, "{us} µs");
        }
        assert_eq!(duration(u64::MAX), "213503982d08h");
    }

    #[test]
    fn bytes_and_rates() {
        let expected = [
            (0, "0B"),
            (512, "512B"),
            (1023, "1023B"),
            (1024, "1KiB"),
            (12_600, "12.3KiB"),
            (1_572_864, "1.5MiB"),
            ((1 << 20) - 1, "1MiB"),
            (u64::MAX, "16EiB"),
        ];
        for (number, text) in expected {
            assert_eq!(bytes(number), text, "{number}");
        }
        assert_eq!(rate(3_565_158.0), "3.4MiB/s");
        assert_eq!(rate(f64::NAN), "0B/s");
        assert_eq!(rate(-1.0), "0B/s");
    }

    #[test]
    fn counts_and_shares() {
        let expected = [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10k"),
            (12_345, "12.3k"),
            (999_500, "1M"),
            (4_510_000, "4.51M"),
        ];
        for (number, text) in expected {
            assert_eq!(count(number), text, "{number}");
        }
        assert_eq!(percent(0.1234), "12.3%");
        assert_eq!(percent(1.0), "100.0%");
        assert_eq!([0.0, 1e-9, 0.000_5, 0.001].map(percent), ["0.0%", "<0.1%", "0.1%", "0.1%"]);
    }

    #[test]
    fn times() {
        let time = Timestamp::from_microsecond(1_767_323_045_123_456).expect("in range");
        assert_eq!(clock(time, &TimeZone::UTC), "03:04:05.123");
        assert_eq!(clock(time, &TimeZone::fixed(jiff::tz::offset(2))), "05:04:05.123");
    }

    #[test]
    fn addresses() {
        let shown = |ip: &str| address(ip.parse().expect(ip), 80);
        assert_eq!(shown("10.0.0.1"), "10.0.0.1:80");
        assert_eq!(shown("fd00::1"), "[fd00::1]:80");
        assert_eq!(shown("::ffff:10.0.0.1"), "10.0.0.1:80");
    }

    proptest! {
        #[test]
        fn no_more_than_half_of_the_third_digit_is_lost(value in 1.0..1e6_f64) {
            let text = scaled(value, 1000.0, &["", "k", "M"]);
            let number: f64 = text.trim_end_matches(['k', 'M']).parse().expect("a number");
            let factor = match text.chars().last() { Some('k') => 1e3, Some('M') => 1e6, _ => 1.0 };
            prop_assert!((number * factor / value - 1.0).abs() <= 0.005_001, "{value} as {text}");
        }

        #[test]
        fn short_durations_take_six_columns_at_most(us in 0..60_000_000_u64) {
            prop_assert!(duration(us).chars().count() <= 6, "{}", duration(us));
        }
    }
}
