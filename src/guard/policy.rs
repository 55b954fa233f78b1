//! Is a policy's expression the one that agd makes for a tenant column?
//!
//! Owns the comparison. Promises that it is of trees, made anew each time: no setting that changes how an expression is
//! printed or parsed matters, and no lock is taken, so that the worker and DDL elsewhere may ask. Never looks at a table.
#![allow(unsafe_code)] // parse nodes

use crate::catalog::Scratch;
use crate::error::Result;
use crate::fmgr::c_function;
use pgrx::pg_sys;

/// Bytes of a tree that is looked at.
const LONGEST: usize = 64 * 1024;

c_function!(agd_is_tenant_policy, pg_finfo_agd_is_tenant_policy, |call| is_tenant_policy(call));

/// `agd.is_tenant_policy(expression, column_number, column_type, type_modifier, column_collation)`
///
/// # Safety
/// `call` comes from the function manager: five arguments of types pg_node_tree, smallint, oid, integer, oid; STRICT.
unsafe fn is_tenant_policy(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: promised by the caller; a pg_node_tree is a varlena of text that PostgreSQL itself wrote.
    let is_own = Scratch::new().with(|| unsafe {
        let [tree, number, column_type, modifier, collation] =
            std::array::from_fn(|index| (*call).args.as_slice(5)[index].value);
        let oid = |value: pg_sys::Datum| pg_sys::Oid::from(value.value() as u32);
        // Its own is a few hundred bytes; another one's may be as long as it likes.
        if pg_sys::toast_raw_datum_size(tree) > LONGEST {
            return false;
        }
        let own = own_expression(number.value() as i16, oid(column_type), modifier.value() as i32, oid(collation));
        let text = pg_sys::text_to_cstring(tree.cast_mut_ptr());
        !own.is_null() && pg_sys::equal(pg_sys::stringToNode(text), own.cast())
    });
    Ok(pg_sys::Datum::from(is_own))
}

/// `column = (SELECT agd.current_tenant())::type`, as PostgreSQL's parser would have it. Null: no such type can be a tenant
/// column's.
unsafe fn own_expression(
    number: i16,
    column_type: pg_sys::Oid,
    modifier: i32,
    collation: pg_sys::Oid,
) -> *mut pg_sys::Node {
    use pg_sys::{INT4OID, INT8OID, TEXTOID, UUIDOID, VARCHAROID};
    if ![TEXTOID, VARCHAROID, UUIDOID, INT8OID, INT4OID].contains(&column_type) {
        return std::ptr::null_mut();
    }
    // SAFETY: every node is made by PostgreSQL's own functions, in the current memory context; names are qualified, so that
    // no search path matters.
    unsafe {
        let state = pg_sys::make_parsestate(std::ptr::null_mut());
        let parsed =
            pg_sys::raw_parser(c"SELECT agd.current_tenant()".as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
        let mut link = pgrx::PgBox::<pg_sys::SubLink>::alloc_node(pg_sys::NodeTag::T_SubLink);
        link.subLinkType = pg_sys::SubLinkType::EXPR_SUBLINK;
        link.subselect =
            pgrx::PgList::<pg_sys::RawStmt>::from_pg(parsed).get_ptr(0).map_or(std::ptr::null_mut(), |raw| (*raw).stmt);
        let kind = pg_sys::ParseExprKind::EXPR_KIND_POLICY;
        let tenant = pg_sys::transformExpr(state, link.into_pg().cast(), kind);
        let tenant = pg_sys::coerce_to_target_type(
            state,
            tenant,
            TEXTOID,
            column_type,
            -1,
            pg_sys::CoercionContext::COERCION_EXPLICIT,
            pg_sys::CoercionForm::COERCE_EXPLICIT_CAST,
            -1,
        );
        let column = pg_sys::makeVar(1, number, column_type, modifier, collation, 0);
        let mut name = pgrx::PgList::<pg_sys::Node>::new();
        for part in [c"pg_catalog", c"="] {
            name.push(pg_sys::makeString(pg_sys::pstrdup(part.as_ptr())).cast());
        }
        let own = pg_sys::make_op(state, name.into_pg(), column.cast(), tenant, std::ptr::null_mut(), -1).cast();
        pg_sys::assign_expr_collations(state, own);
        own
    }
}
