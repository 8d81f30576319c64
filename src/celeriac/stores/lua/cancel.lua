-- Mark tasks as cancelled, and revoke those that wait. Gives those that are marked now.
--
-- ARGV[2]: as for transitions; ARGV[3]: '1' to mark those that run, too; ARGV[4]: now (microseconds); ARGV[5] and
-- ARGV[6]: a revoked task's result and error; ARGV[7]: its date_done; then the ids.

local expires, running, now = tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4]
local rows, marked, news, seen = {}, {}, {}, {}

local function mark(row)
  if not row[CANCEL] then
    set(row, CANCEL, now)
    news[#news + 1] = row.id
  end
end

for index = 8, #ARGV do
  local row = not seen[ARGV[index]] and load(ARGV[index])
  seen[ARGV[index]] = true
  if row then
    look(row)
    local state = current(row)
    local waits = state == 'PENDING' or state == 'RETRY'
    if state and (waits or running and not READY[state]) then
      if not row.known then
        set(row, STATE, state)
        row.known, row.renumber = true, true
      end
      mark(row)
      if waits then
        enter(row, { state = 'REVOKED', at = now, result = ARGV[5], error = ARGV[6], date_done = ARGV[7] })
      end
      rows[#rows + 1] = row
      marked[#marked + 1] = row.id
    end
  end
end

flush(rows, expires)
local time = call('TIME')[1]
for _, id in ipairs(news) do
  call('ZADD', CANCELLED, time, id)
  call('PUBLISH', CANCELLED, id)
end
return marked
