-- Adds parts of chords. count_part(KEYS, ARGV) is Celery's CHORD_PART_RETURN_LUA, which redis_chords.py puts before this.
-- ARGV: prefix of group keys, "1" if parts are ordered, seconds that a chord and that a saved group are kept (0: for
--   ever), seconds that a claim holds, token of the claims; then for each part: group, task, place, what is written.
-- Returns the groups that were claimed, and those that are complete, but were claimed before.
local claimed, held = {}, {}
for first = 7, #ARGV, 4 do
  local group = ARGV[first]
  local key = ARGV[1] .. group
  local reply = count_part(
    {key .. '.j', key .. '.t', key .. '.s', key .. '.d', key, key .. '.c'},
    {ARGV[first + 1], ARGV[first + 3], ARGV[2], ARGV[first + 2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]}
  )
  local count, added, size = reply[1], reply[2], reply[3]
  if reply[4] == 1 then
    table.insert(claimed, group)
  elseif size and count == tonumber(size) + tonumber(added or 0) then
    table.insert(held, group)
  end
end
return {claimed, held}
