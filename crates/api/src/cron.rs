//! When a CronJob runs: five fields of minutes, hours, days, months and weekdays, as robfig/cron reads them for Kubernetes.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};

/// A schedule, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// By the calendar.
    Calendar {
        /// Minutes of an hour, a bit each.
        minutes: u64,
        /// Hours of a day.
        hours: u64,
        /// Days of a month.
        days: u64,
        /// Months of a year.
        months: u64,
        /// Days of a week, Sunday is 0.
        weekdays: u64,
        /// Whether every day of the month or every weekday would do: then both fields must agree, else one is enough.
        any_day: bool,
    },
    /// `@every`: so many seconds after the last time.
    Every(i64),
}

/// A field: its name's numbers from and to, and the words for them.
struct Field {
    low: u32,
    high: u32,
    words: &'static [&'static str],
}

const MINUTES: Field = Field { low: 0, high: 59, words: &[] };
const HOURS: Field = Field { low: 0, high: 23, words: &[] };
const DAYS: Field = Field { low: 1, high: 31, words: &[] };
const MONTHS: Field = Field {
    low: 1,
    high: 12,
    words: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Field = Field { low: 0, high: 6, words: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Field {
    fn number(&self, text: &str) -> Result<u32, String> {
        let lower = text.to_lowercase();
        if let Some(i) = self.words.iter().position(|word| *word == lower) {
            return Ok(self.low + i as u32);
        }
        let number: i64 = text.parse().map_err(|_| {
            format!(
                "failed to parse int from {text}: strconv.Atoi: parsing {}: invalid syntax",
                crate::fielderror::quote(text)
            )
        })?;
        u32::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"))
    }

    /// One part of a field, as `1-5/2`; the second value says whether it was a star.
    fn range(&self, text: &str) -> Result<(u64, bool), String> {
        let mut halves = text.split('/');
        let (span, step) = (halves.next().unwrap_or(""), halves.next());
        if halves.next().is_some() {
            return Err(format!("too many slashes: {text}"));
        }
        let mut ends = span.split('-');
        let (first, second) = (ends.next().unwrap_or(""), ends.next());
        let mut star = false;
        let (low, mut high) = if matches!(first, "*" | "?") {
            star = true;
            (self.low, self.high)
        } else {
            let low = self.number(first)?;
            match second {
                None => (low, low),
                Some(second) if ends.next().is_none() => (low, self.number(second)?),
                Some(_) => return Err(format!("too many hyphens: {text}")),
            }
        };
        let step = match step {
            None => 1,
            Some(step) => {
                let step = self.step(step)?;
                // A number with a step means "from there on".
                if second.is_none() && !star {
                    high = self.high;
                }
                star &= step <= 1;
                step
            }
        };
        if low < self.low {
            return Err(format!("beginning of range ({low}) below minimum ({}): {text}", self.low));
        }
        if high > self.high {
            return Err(format!("end of range ({high}) above maximum ({}): {text}", self.high));
        }
        if low > high {
            return Err(format!("beginning of range ({low}) beyond end of range ({high}): {text}"));
        }
        if step == 0 {
            return Err(format!("step of range should be a positive number: {text}"));
        }
        let bits = (low..=high).step_by(step as usize).fold(0, |bits, n| bits | 1 << n);
        Ok((bits, star))
    }

    fn step(&self, text: &str) -> Result<u32, String> {
        Field { words: &[], ..*self }.number(text)
    }

    fn parse(&self, text: &str) -> Result<(u64, bool), String> {
        let mut all = (0, false);
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (bits, star) = self.range(part)?;
            all = (all.0 | bits, all.1 | star);
        }
        Ok(all)
    }
}

impl Schedule {
    /// Understands a schedule; the text says what is wrong with it.
    pub fn parse(text: &str) -> Result<Schedule, String> {
        let text = match text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
            Some(rest) => rest.split_once(' ').map_or("", |(_, spec)| spec.trim()),
            None => text,
        };
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        if text.starts_with('@') {
            return Schedule::word(text);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        };
        let (minutes, _) = MINUTES.parse(minutes)?;
        let (hours, _) = HOURS.parse(hours)?;
        let (days, every_day) = DAYS.parse(days)?;
        let (months, _) = MONTHS.parse(months)?;
        let (weekdays, every_weekday) = WEEKDAYS.parse(weekdays)?;
        Ok(Schedule::Calendar { minutes, hours, days, months, weekdays, any_day: every_day || every_weekday })
    }

    fn word(text: &str) -> Result<Schedule, String> {
        match text {
            "@yearly" | "@annually" => Schedule::parse("0 0 1 1 *"),
            "@monthly" => Schedule::parse("0 0 1 * *"),
            "@weekly" => Schedule::parse("0 0 * * 0"),
            "@daily" | "@midnight" => Schedule::parse("0 0 * * *"),
            "@hourly" => Schedule::parse("0 * * * *"),
            _ => match text.strip_prefix("@every ") {
                Some(every) => match every.trim().parse::<SignedDuration>() {
                    Ok(duration) => Ok(Schedule::Every(duration.as_secs().max(1))),
                    Err(_) => Err(format!(
                        "failed to parse duration {text}: time: invalid duration {}",
                        crate::fielderror::quote(every)
                    )),
                },
                None => Err(format!("unrecognized descriptor: {text}")),
            },
        }
    }

    /// The first time after `after`, by the clock of a zone; none if there is none within five years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let (minutes, hours, days, months, weekdays, any_day) = match self {
            Schedule::Every(seconds) => return after.checked_add(SignedDuration::from_secs(*seconds)).ok(),
            Schedule::Calendar { minutes, hours, days, months, weekdays, any_day } => {
                (*minutes, *hours, *days, *months, *weekdays, *any_day)
            }
        };
        let has = |bits: u64, n: i8| bits >> n & 1 == 1;
        let mut at = after.to_zoned(zone.clone()).datetime();
        at = at.with().second(0).subsec_nanosecond(0).build().ok()?;
        at = at.checked_add(Span::new().minutes(1)).ok()?;
        let last = at.year() + 5;
        while at.year() <= last {
            if !has(months, at.month()) {
                at = at.first_of_month().start_of_day().checked_add(Span::new().months(1)).ok()?;
                continue;
            }
            let by_day = has(days, at.day());
            let by_weekday = has(weekdays, at.weekday().to_sunday_zero_offset());
            if !(if any_day { by_day && by_weekday } else { by_day || by_weekday }) {
                at = at.start_of_day().checked_add(Span::new().days(1)).ok()?;
                continue;
            }
            if !has(hours, at.hour()) {
                at = at.with().minute(0).build().ok()?.checked_add(Span::new().hours(1)).ok()?;
                continue;
            }
            if !has(minutes, at.minute()) {
                at = at.checked_add(Span::new().minutes(1)).ok()?;
                continue;
            }
            let found = at.to_zoned(zone.clone()).ok()?.timestamp();
            if found > after {
                return Some(found);
            }
            at = at.checked_add(Span::new().minutes(1)).ok()?;
        }
        None
    }
}

trait StartOfDay {
    fn start_of_day(self) -> Self;
}

impl StartOfDay for jiff::civil::DateTime {
    fn start_of_day(self) -> Self {
        self.date().to_datetime(jiff::civil::Time::midnight())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str, zone: &str) -> String {
        let zone = TimeZone::get(zone).expect("a zone");
        let next = Schedule::parse(schedule).expect("a schedule").next(after.parse().expect("a time"), &zone);
        next.map_or_else(|| "never".into(), |at| at.to_string())
    }

    #[test]
    fn the_next_time_is_the_first_minute_that_all_fields_agree_on() {
        let rows = [
            ("*/15 * * * *", "2026-01-01T00:01:30Z", "2026-01-01T00:15:00Z"),
            ("0 3 * * *", "2026-01-01T03:00:00Z", "2026-01-02T03:00:00Z"),
            ("30 4 1,15 * *", "2026-01-02T00:00:00Z", "2026-01-15T04:30:00Z"),
            // 1 February 2026 is a Sunday; either the day or the weekday is enough when both are given.
            ("0 0 13 * fri", "2026-01-31T00:00:00Z", "2026-02-06T00:00:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("@hourly", "2026-12-31T23:30:00Z", "2027-01-01T00:00:00Z"),
            ("@every 90s", "2026-01-01T00:00:00Z", "2026-01-01T00:01:30Z"),
            ("5/20 * * * *", "2026-01-01T00:06:00Z", "2026-01-01T00:25:00Z"),
            ("0 0 31 feb *", "2026-01-01T00:00:00Z", "never"),
        ];
        for (schedule, after, want) in rows {
            assert_eq!(next(schedule, after, "UTC"), want, "{schedule}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_told_as_kubernetes_tells_it() {
        let rows = [
            ("* * *", "expected exactly 5 fields, found 3: [* * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("@often", "unrecognized descriptor: @often"),
        ];
        for (schedule, want) in rows {
            assert_eq!(Schedule::parse(schedule), Err(want.into()));
        }
    }
}
