//! Functions that PostgreSQL's function manager calls as they are, without pgrx's wrapper in between: the gate's triggers
//! and what reads whole rows. Promises that their errors arrive with the SQLSTATE they were given (see
//! [`crate::error::entry`]).
#![allow(unsafe_code)] // exported C symbols

/// Declares the C function `$name` and its info record `$info`; `$body` takes the call and returns `Result<Datum>`.
macro_rules! c_function {
    ($name:ident, $info:ident, $body:expr) => {
        #[doc = concat!("Declares `", stringify!($name), "` to the function manager.")]
        #[unsafe(no_mangle)]
        pub extern "C" fn $info() -> &'static pgrx::pg_sys::Pg_finfo_record {
            const INFO: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &INFO
        }

        #[doc = concat!("The C entry point `", stringify!($name), "`.")]
        ///
        /// # Safety
        /// Only the function manager calls this.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(call: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
            // SAFETY: the function manager passes a valid call; this frame has nothing to drop.
            unsafe { $crate::error::entry(|| $body(call)) }
        }
    };
}

pub(crate) use c_function;
