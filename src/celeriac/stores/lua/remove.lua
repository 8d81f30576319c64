-- Delete all that there is of a task. Whether there was a record.
local function remove(id)
  local row = load(id)
  local known = call('DEL', META .. id) == 1 or row.known
  call('DEL', TASK .. id, EVENTS .. id)
  call('ZREM', INDEX, id)
  for kind, value in pairs({ [':state:'] = row[STATE], [':name:'] = row[NAME], [':queue:'] = row[QUEUE], [':owner:'] = row[OWNER] }) do
    if value then
      call('ZREM', INDEX .. kind .. value, id)
    end
  end
  if row[FINISH] then
    call('ZREM', FINISHED, id)
  end
  if row[CANCEL] or row[STATE] == 'REVOKED' then
    call('ZREM', CANCELLED, id)
  end
  return known
end
