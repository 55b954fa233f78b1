//! Functions that PostgreSQL's function manager calls as they are, without pgrx's wrapper in between: the gate's triggers,
//! what reads whole rows, and what returns many. Promises that their errors arrive with the SQLSTATE they were given (see
//! [`crate::error::entry`]).
#![allow(unsafe_code)] // exported C symbols, calls as C sees them

use crate::catalog::Scratch;
use crate::error::{Error, Result};
use pgrx::datum::{FromDatum, IntoDatum};
use pgrx::pg_sys;
use std::ffi::CStr;

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

/// The same for a function that runs with the rights of agd's owner, whoever calls it: what SECURITY DEFINER and SET clauses
/// would do, but that it knows its caller ([`crate::identity`]). In SQL it is SECURITY INVOKER, and without settings.
macro_rules! definer_function {
    ($name:ident, $info:ident, $body:expr) => {
        // SAFETY: the function manager's call is passed on as it is.
        $crate::fmgr::c_function!($name, $info, |call| $crate::identity::as_owner(call, || $body(call)));
    };
}

pub(crate) use {c_function, definer_function};

/// An argument of a call; None: SQL NULL.
///
/// # Safety
/// The call is the one being answered, and has this argument, of `T`'s type.
pub unsafe fn argument<T: FromDatum>(call: pg_sys::FunctionCallInfo, number: usize) -> Option<T> {
    // SAFETY: passed on to the caller.
    unsafe {
        let argument = (*call).args.as_ptr().add(number);
        T::from_datum((*argument).value, (*argument).isnull)
    }
}

/// A jsonb argument's text, as PostgreSQL prints it: numbers keep their digits. None: SQL NULL.
///
/// # Safety
/// As of [`argument`]; it is of type jsonb.
pub unsafe fn json_text(call: pg_sys::FunctionCallInfo, number: usize) -> Option<String> {
    // SAFETY: passed on to the caller; the output function returns a C string.
    unsafe {
        let argument = (*call).args.as_ptr().add(number);
        if (*argument).isnull {
            return None;
        }
        let text = pg_sys::OidOutputFunctionCall(pg_sys::Oid::from(pg_sys::F_JSONB_OUT), (*argument).value);
        Some(CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

/// A function's result; None: SQL NULL.
///
/// # Safety
/// The call is the one being answered.
pub unsafe fn answer(call: pg_sys::FunctionCallInfo, value: Option<pg_sys::Datum>) -> pg_sys::Datum {
    // SAFETY: passed on to the caller.
    unsafe { (*call).isnull = value.is_none() };
    value.unwrap_or(pg_sys::Datum::from(0))
}

/// The rows of a function that returns a table, handed over all at once: row by row PostgreSQL would enter the function anew
/// for each, which for one that is SECURITY DEFINER with settings costs more than making the row.
pub struct Rows {
    store: *mut pg_sys::Tuplestorestate,
    descriptor: pg_sys::TupleDesc,
    scratch: Scratch,
}

impl Rows {
    /// Begins the answer to a call.
    ///
    /// # Safety
    /// The call is the one being answered.
    pub unsafe fn begin(call: pg_sys::FunctionCallInfo) -> Result<Self> {
        let refused = || Error::WrongState {
            message: "this function returns a table, and is called where there can be none".into(),
            hint: "SELECT * FROM the function.".into(),
        };
        // SAFETY: the caller vouches for the call; who can take a set says so in a ReturnSetInfo. What is made here lives in
        // the query's memory, as the function manager asks for.
        unsafe {
            let result = (*call).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            let materialize = pg_sys::SetFunctionReturnMode::SFRM_Materialize as i32;
            if result.is_null()
                || (*result).type_ != pg_sys::NodeTag::T_ReturnSetInfo
                || (*result).allowedModes & materialize == 0
            {
                return Err(refused());
            }
            let mut descriptor = std::ptr::null_mut();
            let class = pg_sys::get_call_result_type(call, std::ptr::null_mut(), &mut descriptor);
            if class != pg_sys::TypeFuncClass::TYPEFUNC_COMPOSITE {
                return Err(refused());
            }
            let random = (*result).allowedModes & pg_sys::SetFunctionReturnMode::SFRM_Materialize_Random as i32 != 0;
            let outer = pg_sys::MemoryContextSwitchTo((*(*result).econtext).ecxt_per_query_memory);
            let descriptor = pg_sys::CreateTupleDescCopy(descriptor);
            let store = pg_sys::tuplestore_begin_heap(random, false, pg_sys::work_mem);
            pg_sys::MemoryContextSwitchTo(outer);
            (*result).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            (*result).setResult = store;
            (*result).setDesc = descriptor;
            Ok(Rows { store, descriptor, scratch: Scratch::new() })
        }
    }

    /// One row more. `values` makes one value for each column.
    pub fn put<const COLUMNS: usize>(&mut self, values: impl FnOnce() -> [Option<pg_sys::Datum>; COLUMNS]) {
        self.scratch.with(|| {
            let values = values();
            let mut nulls = values.map(|value| value.is_none());
            let mut values = values.map(|value| value.unwrap_or(pg_sys::Datum::from(0)));
            // SAFETY: the store and its row type were made in begin(); the store copies the row.
            unsafe {
                assert_eq!((*self.descriptor).natts as usize, COLUMNS, "columns of the function's result");
                pg_sys::tuplestore_putvalues(self.store, self.descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            }
        });
    }
}

/// A text value in the present memory context.
pub fn text(value: &str) -> Option<pg_sys::Datum> {
    value.into_datum()
}
