//! What this process uses of the machine.

use crate::Page;

/// What the process uses of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Processor time in seconds, of the kernel for it and its own.
    pub cpu: f64,
    /// Resident bytes.
    pub resident: u64,
    /// Virtual bytes.
    pub virtual_: u64,
    /// When it started, in seconds of the Unix epoch.
    pub started: f64,
    /// Open descriptors.
    pub descriptors: usize,
}

impl Process {
    /// This process now.
    pub fn now() -> Option<Process> {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Process::of(&read("/proc/self/stat")?, &read("/proc/self/status")?, &read("/proc/stat")?, descriptors)
    }

    /// From proc_pid_stat(5), proc_pid_status(5) and proc_stat(5).
    fn of(own: &str, status: &str, machine: &str, descriptors: usize) -> Option<Process> {
        /// `USER_HZ`, which is 100 on every architecture that we run on, whatever the kernel's own clock.
        const TICKS: f64 = 100.0;
        // The program's name may contain anything, and ends at the last parenthesis; field 3 comes after it.
        let fields: Vec<&str> = own.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let size = |name: &str| {
            let text = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
            Some(text.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
        };
        let booted: f64 = machine.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(Process {
            cpu: (field(14)? + field(15)?) as f64 / TICKS,
            resident: size("VmRSS")?,
            virtual_: size("VmSize")?,
            started: booted + field(22)? as f64 / TICKS,
            descriptors,
        })
    }

    /// The samples that every program of Go has as well.
    pub fn write(self, page: &mut Page) {
        page.one("process_cpu_seconds_total", "counter", "Processor time used, in seconds.", self.cpu);
        page.one("process_resident_memory_bytes", "gauge", "Resident memory in bytes.", self.resident);
        page.one("process_virtual_memory_bytes", "gauge", "Virtual memory in bytes.", self.virtual_);
        page.one("process_start_time_seconds", "gauge", "Start of the process, Unix time.", self.started);
        page.one("process_open_fds", "gauge", "Open file descriptors.", self.descriptors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_uses_is_read_past_any_name() {
        let own = "42 (a) b (c) S 1 1 1 0 -1 4 0 0 0 0 150 50 0 0 20 0 9 0 1000 8192000 25 1844 1 1";
        let status = "Name:\ta) b (c\nVmSize:\t    8000 kB\nVmRSS:\t     100 kB\n";
        let process = Process::of(own, status, "cpu 1 2\nbtime 1700000000\n", 8).expect("understood");
        let wanted = Process {
            cpu: 2.0,
            resident: 102_400,
            virtual_: 8_192_000,
            started: 1_700_000_010.0,
            descriptors: 8,
        };
        assert_eq!(process, wanted);
        assert_eq!(Process::of("", "", "", 0), None);
    }
}
