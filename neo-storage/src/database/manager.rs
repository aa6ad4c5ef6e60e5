// SPDX-License-Identifier: GPL-2.0-or-later
//! Logic that backends share: what rows mean, without a query.
