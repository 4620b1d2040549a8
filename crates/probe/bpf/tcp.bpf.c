/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The monitor: one object, one program a hook. Each hook file says where it is attached, what it feeds and what
 * it costs.
 */
#include "hooks/lifecycle.h"
#include "hooks/rtt.h"
#include "hooks/retransmit.h"
#include "hooks/reset.h"
#include "hooks/drop.h"
#include "hooks/congestion.h"
#include "hooks/accept.h"
#include "hooks/listen.h"
#include "hooks/collapse.h"
#include "hooks/use.h"
#include "hooks/cgroup.h"
#include "hooks/dns.h"
#include "hooks/iterate.h"

/* The helpers used are for programs under the GPL only. */
char LICENSE[] SEC("license") = "Dual MIT/GPL";
