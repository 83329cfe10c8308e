//! Stands in for CubeCL's LLVM compiler.
//!
//! CubeCL's CUDA runtime knows two ways to compile a kernel: through NVRTC, the CUDA library, or through an LLVM of its own. It
//! links both whichever it uses, and building the second one fetches 1 GB of LLVM from outside any registry. bitsmith uses the first
//! (`cubecl/cuda-cpp`), so the workspace puts this crate in the second one's place: the same names, and a compiler that refuses.

use cubecl_core::Compiler;
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::CompilationError;
use cubecl_runtime::kernel::BufferIOAttr;

/// What to compile for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA GPUs.
    #[default]
    Nvptx,
}

/// Refuses to compile.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What to compile for.
    pub target: LlvmTarget,
}

/// Options that the CUDA runtime passes.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// The architecture of an AMD GPU: always `None`.
    pub arch: Option<()>,
    /// The architecture of an NVIDIA GPU.
    pub sm_arch: Option<SmArch>,
    /// The version of its assembly.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// How kernels get their scalars.
    pub grid_constants: bool,
    /// Always `None`: more options than the CUDA runtime names, so that it may fill up with defaults.
    pub other: Option<()>,
}

/// A compiled kernel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PlironArtifact {
    /// For NVIDIA GPUs.
    NvptxCode(NvptxModule),
}

impl core::fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self::NvptxCode(module) = self;
        f.write_str(&module.ir)
    }
}

/// A compiled kernel for NVIDIA GPUs.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// Assembly, ended by a zero.
    pub ptx: Vec<core::ffi::c_char>,
    /// The kernel's symbol.
    pub entrypoint: String,
    /// For logs.
    pub ir: String,
    /// Bytes of shared memory.
    pub shared_memory_size: usize,
    /// How each buffer is accessed.
    pub io: Vec<BufferIOAttr>,
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(&mut self, _: KernelDefinition, _: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        let reason = "this build has no LLVM compiler: enable the feature `cuda-cpp` of cubecl".to_owned();
        Err(CompilationError::Generic { reason, backtrace: BackTrace::capture() })
    }

    fn extension(&self) -> &'static str {
        "plir"
    }

    fn lang_tag(&self) -> &'static str {
        "none"
    }
}

pub mod nvptx {
    //! What concerns NVIDIA GPUs alone.

    pub mod ptx_version {
        //! The version of their assembly.

        /// A version, of which there are none here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// None for any driver.
            pub fn for_driver(_: i32) -> Option<Self> {
                None
            }
        }

        impl core::fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match *self {}
            }
        }
    }
}

pub mod shared {
    //! What concerns every target.

    pub mod lowered_features {
        //! What a device advertises to this compiler.

        use cubecl_core::ir::DeviceProperties;

        /// Whose features are meant.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA GPUs'.
            Nvptx,
        }

        /// Leaves all features: nothing is compiled.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {}
    }
}
