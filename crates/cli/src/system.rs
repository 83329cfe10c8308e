//! What the machine says about this process: threads, peak memory, processor.

use bitsmith_kernels::isa::{self, Isa, Level};

use crate::failure::Failure;
use crate::suggest;

/// The most memory this process has held so far, in bytes: `VmHWM` of `/proc/self/status`. `None` where the system does
/// not tell.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Begins to count [`peak_memory_bytes`] anew, where the system lets a process do that (Linux).
pub fn forget_peak_memory() {
    // Refused elsewhere: then the peak is that of the whole process.
    _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The processor's name, or at least its kind.
pub fn processor() -> String {
    let described = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = described.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |name| name.trim().to_owned())
}

/// The variable that keeps kernels to an instruction set.
const ISA: &str = "BITSMITH_ISA";

/// Keeps kernels to the instruction set that `BITSMITH_ISA` names, where it is set: `portable`, `neon`, `avx2` or `avx512`.
pub fn choose_kernels() -> Result<(), Failure> {
    let Some(wanted) = std::env::var_os(ISA).filter(|name| !name.is_empty()) else { return Ok(()) };
    let wanted = wanted.to_string_lossy();
    let names = Level::ALL.map(Level::name);
    let Some(level) = Level::from_name(&wanted) else {
        return Err(Failure::usage(format!("{ISA}={wanted} is no instruction set that kernels are written for"))
            .remedy(suggest::remedy(&wanted, &names)));
    };
    match isa::force(level) {
        Ok(_) => Ok(()),
        Err(_) => {
            let here: Vec<&str> = Isa::available().map(|isa| isa.level().name()).collect();
            Err(Failure::usage(format!("{ISA}={wanted}, but this processor does not have it"))
                .remedy(format!("one of {}", here.join(", "))))
        }
    }
}

/// Sizes the pool that kernels, loaders and burn share. 0 means one thread per core.
pub fn set_threads(threads: usize) -> Result<usize, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if threads == 0 { cores } else { threads };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    Ok(threads)
}

#[cfg(test)]
mod tests {
    #[test]
    fn peak_memory_is_known_on_linux() {
        if cfg!(target_os = "linux") {
            assert!(super::peak_memory_bytes().is_some_and(|b| b > 1 << 16));
        }
    }
}
