# SPDX-License-Identifier: GPL-2.0-or-later
"""NEO: distributed, redundant, transactional storage for ZODB."""
