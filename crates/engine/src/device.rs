//! Where a network runs: this CPU, with our kernels, or a GPU, with the compositions of burn's operations.
//!
//! Every build knows every device by name. Which of them it can use depends on the features `cuda` and `wgpu`; asking for another
//! one is an error that says so. A device is tried before anything is computed on it, so that a missing driver is an error too.

use std::fmt;
use std::str::FromStr;

use crate::engine::Operators;
use crate::error::{Error, Kind};

/// A device to infer and train on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The CPU. The same threads give the same bits.
    #[default]
    Cpu,
    /// The first NVIDIA GPU; needs the feature `cuda`. Sums may be taken in another order each time.
    Cuda,
    /// The GPU that wgpu finds best, or the software driver if that is all there is; needs the feature `wgpu`.
    Wgpu,
}

impl Device {
    /// Every device, in this build or not.
    pub const ALL: [Device; 3] = [Device::Cpu, Device::Cuda, Device::Wgpu];

    /// What it is called on the command line; beyond the CPU, that of its feature, too.
    pub const fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
            Device::Wgpu => "wgpu",
        }
    }

    /// Whether this build can use the device and this machine has it; the error says which of the two is not so.
    pub fn check(self) -> Result<(), Error> {
        self.open(Operators::Fused).map(drop)
    }

    /// Finds the device and computes something on it. The CPU alone has a choice of operators.
    pub(crate) fn open(self, operators: Operators) -> Result<Place, Error> {
        match (self, operators) {
            (Device::Cpu, Operators::Fused) => Ok(Place::Fused),
            (Device::Cpu, Operators::Composed) => Ok(Place::Composed),
            #[cfg(feature = "cuda")]
            (Device::Cuda, _) => gpu::open(self, || gpu::CubeDevice::cuda(0)),
            #[cfg(feature = "wgpu")]
            (Device::Wgpu, _) => gpu::open(self, || gpu::CubeDevice::wgpu(Default::default())),
            #[cfg(not(all(feature = "cuda", feature = "wgpu")))]
            (device, _) => Err(device.missing()),
        }
    }

    #[cfg(not(all(feature = "cuda", feature = "wgpu")))]
    fn missing(self) -> Error {
        let name = self.name();
        let detail = format!("this build has no `{name}`: build with `cargo build --release --features {name}`");
        Error::new(Kind::Device, "", detail)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|device| device.name() == name).ok_or_else(|| {
            let detail = format!("there is no device `{name}`: one of {}", Self::ALL.map(Self::name).join(", "));
            Error::new(Kind::Device, "", detail)
        })
    }
}

/// A device that was found, and the operators that run there.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// The CPU, our kernels.
    Fused,
    /// The CPU, compositions.
    Composed,
    /// A GPU, compositions.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    Gpu(gpu::Gpu),
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod gpu {
    //! burn's backend for GPUs: one type for all of them, told apart by the device at run time.

    use std::panic::{AssertUnwindSafe, catch_unwind};

    pub(crate) use burn_cubecl::{Cube, CubeDevice};

    use burn_backend::ops::FloatTensorOps;
    use burn_backend::{Scalar, Shape, TensorData};

    use super::{Device, Place};
    use crate::error::{Error, Kind};
    use crate::ops::read;

    /// A GPU that computed something once.
    #[derive(Debug, Clone)]
    pub(crate) struct Gpu {
        name: Device,
        pub device: CubeDevice,
    }

    impl Gpu {
        /// Runs work on the GPU. burn panics where a library is missing, a kernel does not compile or the device is lost; here that
        /// becomes an error.
        pub fn run<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
            guard(self.name, work)
        }
    }

    fn guard<T>(name: Device, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        // What the work leaves half done are tensors, which nobody sees after the error.
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it stopped without a word");
            Err(Error::new(Kind::Device, "", format!("the device `{name}` failed: {}", text.trim())))
        })
    }

    pub(super) fn open<E: std::error::Error>(
        name: Device,
        find: impl FnOnce() -> Result<CubeDevice, E>,
    ) -> Result<Place, Error> {
        let device = guard(name, || {
            find().map_err(|error| {
                let needs = match name {
                    Device::Cuda => "an NVIDIA GPU and its driver (libcuda) are needed",
                    _ => "a GPU with a Vulkan or Metal driver is needed",
                };
                Error::new(Kind::Device, "", format!("this machine has no `{name}` device: {needs} ({error})"))
            })
        })?;
        let gpu = Gpu { name, device };
        // One addition: loads every library, compiles a kernel, and waits for the answer.
        let sum = gpu.run(|| {
            let one = Cube::float_from_data(TensorData::new(vec![1.0f32], Shape::new([1])), &gpu.device);
            read::<Cube>(Cube::float_add_scalar(one, Scalar::from(1.0f32)))
        })?;
        match sum.as_slice() == [2.0] {
            true => Ok(Place::Gpu(gpu)),
            false => Err(Error::new(Kind::Device, "", format!("the device `{name}` does not work: 1 + 1 is {sum:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Device;

    #[test]
    fn devices_go_by_name() {
        for device in Device::ALL {
            assert_eq!(device.name().parse(), Ok(device));
        }
        let error = "gpu".parse::<Device>().unwrap_err().to_string();
        assert_eq!(error, "there is no device `gpu`: one of cpu, cuda, wgpu");
        assert_eq!(Device::Cpu.check(), Ok(()));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_the_build_lacks_is_refused_with_the_remedy() {
        let error = Device::Cuda.check().unwrap_err().to_string();
        assert_eq!(error, "this build has no `cuda`: build with `cargo build --release --features cuda`");
    }
}
