-- Mark tasks as cancelled, and revoke those that wait. Gives those that are marked now.
--
-- ARGV[2]: as for transitions; ARGV[3]: '1' to mark those that run, too; ARGV[4]: now (microseconds); ARGV[5] and
-- ARGV[6]: a revoked task's result and error; ARGV[7]: its date_done; then the ids.

local running, now = ARGV[3] == '1', ARGV[4]
local changed, ids, marked, news, seen = {}, {}, {}, {}, {}

local function mark(task, state)
  if not task.known then
    task.row[STATE] = state
    task.known, task.numbered = true, true
  end
  if task.row[CANCEL] == '' then
    task.row[CANCEL] = now
    news[#news + 1] = task.id
  end
  task.changed = true
  if state == 'PENDING' or state == 'RETRY' then
    enter(task, { state = 'REVOKED', at = now, worker = '', result = ARGV[5], error = ARGV[6], date_done = ARGV[7] })
  end
  changed[#changed + 1] = task
  marked[#marked + 1] = task.id
end

for index = 8, #ARGV do
  if not seen[ARGV[index]] then
    seen[ARGV[index]] = true
    ids[#ids + 1] = ARGV[index]
  end
end

for _, task in ipairs((open(ids))) do
  look(task)
  local state = (task.known or task.written) and current(task)
  if state and (state == 'PENDING' or state == 'RETRY' or running and not READY[state]) then
    mark(task, state)
  end
end

flush(changed, ARGV[2])
local time = call('TIME')[1]
for _, id in ipairs(news) do
  call('ZADD', CANCELLED, time, id)
  call('PUBLISH', CANCELLED, id)
end
return marked
