-- Seconds that a revoked task is remembered as such when its record is gone: its message may wait somewhere.
local MARK_KEPT = 2592000

-- A task that is revoked stays so; what else is marked has no record that could be revoked.
local function keep_mark(id, row)
  local marked = row and row[STATE] == 'REVOKED'
  if not row then
    local score = call('ZSCORE', CANCELLED, id)
    if not score or tonumber(score) < 0 then
      return
    end
    marked = true
  end
  if marked then
    call('ZADD', CANCELLED, -(call('TIME')[1] + MARK_KEPT), id)
  else
    call('ZREM', CANCELLED, id)
  end
end

-- Delete all that there is of a task. Whether there was a record.
local function remove(id)
  local row = load(id)
  -- What frees memory comes first: a script that has begun to write may use some on a server that is full.
  local written = call('DEL', META .. id) == 1
  call('DEL', TASK .. id, EVENTS .. id)
  call('ZREM', INDEX, id)
  keep_mark(id, row)
  if not row then
    return written
  end
  for kind, value in pairs({ [':state:'] = row[STATE], [':name:'] = row[NAME], [':queue:'] = row[QUEUE], [':owner:'] = row[OWNER] }) do
    if value ~= '' then
      call('SREM', INDEX .. kind .. value, id)
    end
  end
  return true
end
