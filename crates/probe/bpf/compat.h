/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Every difference between kernels that the programs must know, each with the version that made it. Asked for
 * as a feature (in BTF), never as a version: the loader sets the constants before the verifier sees the code,
 * so what a kernel lacks is dead code there.
 */
#ifndef COMPAT_H
#define COMPAT_H

#include "kernel.h"

/* 6.17: tcp_retransmit_skb got a third argument `err` and fires for failed tries too. */
const volatile bool retransmit_has_err = false;

/* 6.11: kfree_skb tells which socket would have received the packet. */
const volatile bool drop_has_socket = false;

/* 6.10: inet_csk_accept has two arguments, the second a struct with the flags; four before. */
const volatile bool accept_has_argument = false;

/*
 * A host with cgroup v1 only: sockets carry the root of a hierarchy that nobody uses, so the owner is the
 * task's cgroup in one v1 controller. The controllers' numbers depend on the kernel's configuration.
 */
const volatile bool owner_by_task = false;
const volatile __u32 owner_controller = 0;

/* The hierarchy whose cgroups are named: 0 is cgroup2. */
const volatile int owner_hierarchy = 0;

/*
 * 6.2: a program may say of an address what lies there, and read it directly, as of any pointer that may be stale. Before, it
 * has to copy.
 */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;
#define casts_addresses bpf_ksym_exists(bpf_rdonly_cast)

/* clang 14 may fold a bounds check into the index's computation, which 6.1 does not follow. */
#define opaque(x) asm volatile("" : "+r"(x))

#endif
